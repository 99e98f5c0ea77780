"""Table of evaluations: the settings of each, and how to load the function that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from selfpatch.config.schema import plain
from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.classification.knn.config import KNNConfig
from selfpatch.evaluation.classification.linear.config import LinearConfig
from selfpatch.evaluation.config import EvaluationConfig
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.depth.config import DepthConfig
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.retrieval.config import RetrievalConfig
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.view_matching.config import ViewMatchingConfig

if TYPE_CHECKING:
    from selfpatch.core.types import Encoder
    from selfpatch.evaluation.result import Output, Result


class Evaluate(Protocol):
    """Function that measures an encoder on a data set."""

    def __call__(self, encoder: Encoder, data: str | Path, config: Any, output: Output) -> Result:
        """Return the result.

        The encoder is None only when ready-made results or a baseline without a network are scored. `data` is the data
        set (see `data_help` of the settings), and `config` is of the row's class. Files and progress go to `output`; by
        default nothing is written.
        """
        ...


EVALUATIONS: dict[str, type[EvaluationConfig]] = {
    "correspond": CorrespondenceConfig,
    "davis": DAVISConfig,
    "depth": DepthConfig,
    "detect": DetectionConfig,
    "discover": ObjectDiscoveryConfig,
    "finetune": FinetuneConfig,
    "knn": KNNConfig,
    "linear": LinearConfig,
    "match": ViewMatchingConfig,
    "navi": NAVIConfig,
    "retrieval": RetrievalConfig,
    "segment": SegmentationConfig,
}
"""Settings class of each evaluation, by the name that follows `selfpatch evaluate`."""

BASELINES = {baseline: name for name, config in EVALUATIONS.items() for baseline in config.baselines}
"""Evaluation of each baseline that needs no encoder."""


def find_config(name: str) -> type[EvaluationConfig]:
    """Return the settings class of an evaluation.

    Raises:
        ValueError: there is no such evaluation.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"there is no evaluation {name!r}; use one of: {', '.join(EVALUATIONS)}")
    return EVALUATIONS[name]


def load_evaluation(name: str) -> Evaluate:
    """Import the module `evaluate` next to the settings, and return its function; torch is imported only now."""
    folder = find_config(name).__module__.rpartition(".")[0]
    return cast("Evaluate", importlib.import_module(f"{folder}.evaluate").evaluate)


def complete_settings(name: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings of an evaluation; those that are newer than the file have their defaults."""
    if name not in EVALUATIONS:
        return dict(stored)
    try:
        defaults = plain(EVALUATIONS[name].with_choices(stored))
    except ValueError:  # a variant or preset that no longer exists
        return dict(stored)
    return defaults | dict(stored)
