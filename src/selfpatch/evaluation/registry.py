"""Table of evaluations: the settings of each, and how to load the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.classification.knn.config import KNNConfig
from selfpatch.evaluation.classification.linear.config import LinearConfig
from selfpatch.evaluation.config import EvaluationConfig
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.video_segmentation.config import DAVISConfig

if TYPE_CHECKING:
    from selfpatch.core.types import Encoder
    from selfpatch.evaluation.result import Progress, Provenance, Result


class Evaluate(Protocol):
    """Function that measures an encoder on a data set."""

    def __call__(
        self,
        encoder: Encoder,
        data: str | Path,
        config: Any,
        *,
        out: Path | None = None,
        weights: Provenance | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Return the result; `out` is an existing folder for pictures and checkpoints, or None to write nothing.

        `encoder` is None only for an evaluation that scores ready-made results or measures one of its own baselines.
        """
        ...


class Evaluation(NamedTuple):
    """One row of the table.

    Attributes:
        config: class of the settings.
        load: function that imports the evaluation and returns it; torch is imported then and not before.
    """

    config: type[EvaluationConfig]
    load: Callable[[], Evaluate]


def _correspond() -> Evaluate:
    from selfpatch.evaluation.correspondence.evaluate import evaluate

    return evaluate


def _davis() -> Evaluate:
    from selfpatch.evaluation.video_segmentation.evaluate import evaluate

    return evaluate


def _detect() -> Evaluate:
    from selfpatch.evaluation.detection.evaluate import evaluate

    return evaluate


def _discover() -> Evaluate:
    from selfpatch.evaluation.object_discovery.evaluate import evaluate

    return evaluate


def _finetune() -> Evaluate:
    from selfpatch.evaluation.classification.finetune.evaluate import evaluate

    return evaluate


def _knn() -> Evaluate:
    from selfpatch.evaluation.classification.knn.evaluate import evaluate

    return evaluate


def _linear() -> Evaluate:
    from selfpatch.evaluation.classification.linear.evaluate import evaluate

    return evaluate


def _segment() -> Evaluate:
    from selfpatch.evaluation.segmentation.evaluate import evaluate

    return evaluate


EVALUATIONS: dict[str, Evaluation] = {
    "correspond": Evaluation(CorrespondenceConfig, _correspond),
    "davis": Evaluation(DAVISConfig, _davis),
    "detect": Evaluation(DetectionConfig, _detect),
    "discover": Evaluation(ObjectDiscoveryConfig, _discover),
    "finetune": Evaluation(FinetuneConfig, _finetune),
    "knn": Evaluation(KNNConfig, _knn),
    "linear": Evaluation(LinearConfig, _linear),
    "segment": Evaluation(SegmentationConfig, _segment),
}
"""Evaluations by the name that follows `selfpatch evaluate`."""

BASELINES = {baseline: name for name, row in EVALUATIONS.items() for baseline in row.config.baselines}
"""Evaluation of each baseline that needs no encoder."""


def find_evaluation(name: str) -> Evaluation:
    """Return the row of a name.

    Raises:
        ValueError: there is no such evaluation.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"there is no evaluation {name!r}; use one of: {', '.join(EVALUATIONS)}")
    return EVALUATIONS[name]
