"""Self-supervised pre-training of vision backbones with good patch features, and the evaluations that measure them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from selfpatch.core.version import VERSION

__version__ = VERSION
__all__ = [
    "compare",
    "embed",
    "evaluate",
    "evaluate_suite",
    "explore",
    "export",
    "load",
    "prepare",
    "pretrain",
    "read_embeddings",
    "resume",
    "run_study",
    "show",
]

if TYPE_CHECKING:
    from selfpatch.api.embed import embed
    from selfpatch.api.encoder import load
    from selfpatch.api.evaluate import compare, evaluate
    from selfpatch.api.explore import explore
    from selfpatch.api.export import export
    from selfpatch.api.prepare import prepare
    from selfpatch.api.pretrain import pretrain, resume
    from selfpatch.api.show import show
    from selfpatch.embedding.read import read_embeddings
    from selfpatch.experiments.run import run_study
    from selfpatch.experiments.suite import evaluate_suite

_MODULES = {
    "compare": "selfpatch.api.evaluate",
    "embed": "selfpatch.api.embed",
    "evaluate": "selfpatch.api.evaluate",
    "evaluate_suite": "selfpatch.experiments.suite",
    "explore": "selfpatch.api.explore",
    "export": "selfpatch.api.export",
    "load": "selfpatch.api.encoder",
    "prepare": "selfpatch.api.prepare",
    "pretrain": "selfpatch.api.pretrain",
    "read_embeddings": "selfpatch.embedding.read",
    "resume": "selfpatch.api.pretrain",
    "run_study": "selfpatch.experiments.run",
    "show": "selfpatch.api.show",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # torch and timm take seconds to import, so that they are imported on first use only
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'selfpatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
