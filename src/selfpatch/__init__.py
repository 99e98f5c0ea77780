"""Pre-training of vision transformers without labels, for good patch features, and every evaluation that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["evaluate", "export", "load", "pretrain", "resume", "show"]

if TYPE_CHECKING:
    from selfpatch.commands import evaluate, export, load, pretrain, resume, show


def __getattr__(name: str) -> Any:
    if name in __all__:
        from selfpatch import commands  # torch and timm take seconds to import: only when something is asked for

        return getattr(commands, name)
    raise AttributeError(f"module 'selfpatch' has no attribute {name!r}")
