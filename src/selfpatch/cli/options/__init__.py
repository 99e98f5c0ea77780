"""Options of evaluations that have no settings class yet."""

from __future__ import annotations

from selfpatch.cli.options.weights import EvaluationOptions

EVALUATIONS: dict[str, type[EvaluationOptions]] = {}
"""By the name that follows `selfpatch evaluate`."""
