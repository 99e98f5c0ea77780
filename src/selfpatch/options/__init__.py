"""The command line's options of each evaluation, one file each; only what a call needs is imported, when it is made."""

from __future__ import annotations

from selfpatch.options.bench import Bench
from selfpatch.options.compare import Compare
from selfpatch.options.correspond import Correspond
from selfpatch.options.davis import Davis
from selfpatch.options.detect import Detect
from selfpatch.options.discover import Discover
from selfpatch.options.finetune import Finetune
from selfpatch.options.knn import Knn
from selfpatch.options.linear import Linear
from selfpatch.options.segment import Segment
from selfpatch.options.study import Study
from selfpatch.options.suite import Suite
from selfpatch.options.weights import EvaluationOptions, NetworkOptions, WeightsOptions

__all__ = ["EVALUATIONS", "Bench", "Compare", "NetworkOptions", "Study", "Suite", "WeightsOptions"]

EVALUATIONS: dict[str, type[EvaluationOptions]] = {
    "correspond": Correspond,
    "davis": Davis,
    "detect": Detect,
    "discover": Discover,
    "finetune": Finetune,
    "knn": Knn,
    "linear": Linear,
    "segment": Segment,
}
"""By the name that follows `selfpatch evaluate`."""
