"""Pre-training of vision transformers without labels, for good patch features, and every evaluation that shows it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "evaluate_suite", "export", "load", "pretrain", "resume", "show"]

if TYPE_CHECKING:
    from selfpatch.commands import compare, evaluate, export, load, pretrain, resume, show
    from selfpatch.suite import evaluate_suite


def __getattr__(name: str) -> Any:
    if name in __all__:
        # torch and timm take seconds to import: only when something is asked for
        module = importlib.import_module("selfpatch.suite" if name == "evaluate_suite" else "selfpatch.commands")
        return getattr(module, name)
    raise AttributeError(f"module 'selfpatch' has no attribute {name!r}")
