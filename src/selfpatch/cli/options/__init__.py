"""The command line's options of each evaluation, one file each; only what a call needs is imported, when it is made."""

from __future__ import annotations

from selfpatch.cli.options.bench import Bench
from selfpatch.cli.options.compare import Compare
from selfpatch.cli.options.detect import Detect
from selfpatch.cli.options.segment import Segment
from selfpatch.cli.options.study import Study
from selfpatch.cli.options.suite import Suite
from selfpatch.cli.options.weights import EvaluationOptions, NetworkOptions, WeightsOptions

__all__ = ["EVALUATIONS", "Bench", "Compare", "NetworkOptions", "Study", "Suite", "WeightsOptions"]

EVALUATIONS: dict[str, type[EvaluationOptions]] = {
    "detect": Detect,
    "segment": Segment,
}
"""By the name that follows `selfpatch evaluate`."""
