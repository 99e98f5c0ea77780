"""Pre-training of vision transformers without labels, for good patch features, and every evaluation that shows it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "evaluate_suite", "export", "load", "pretrain", "resume", "run_study", "show"]

if TYPE_CHECKING:
    from selfpatch.api.evaluate import compare, evaluate, load
    from selfpatch.api.export import export
    from selfpatch.api.pretrain import pretrain, resume
    from selfpatch.api.show import show
    from selfpatch.experiments.run import run_study
    from selfpatch.experiments.suite import evaluate_suite

_FROM = dict.fromkeys(["pretrain", "resume"], "selfpatch.api.pretrain")
_FROM |= dict.fromkeys(["compare", "evaluate", "load"], "selfpatch.api.evaluate")
_FROM |= {
    "export": "selfpatch.api.export",
    "show": "selfpatch.api.show",
    "evaluate_suite": "selfpatch.experiments.suite",
    "run_study": "selfpatch.experiments.run",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:  # torch and timm take seconds to import: only when something is asked for
        return getattr(importlib.import_module(_FROM[name]), name)
    raise AttributeError(f"module 'selfpatch' has no attribute {name!r}")
