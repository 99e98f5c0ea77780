"""Semantic segmentation with patch features: by retrieval, a linear head, clusters, or a trained decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Progress, Result
from selfpatch.evaluation.segmentation import decoder_training, kmeans, knn, linear, logistic
from selfpatch.evaluation.segmentation.config import SegmentationConfig, SupervisedConfig
from selfpatch.evaluation.segmentation.harness import FittedMethod, open_splits, score_images
from selfpatch.evaluation.segmentation.metrics import Scores, constant_prediction

METHODS: dict[str, Callable[..., FittedMethod]] = {
    "knn": knn.fit_knn,
    "linear": linear.fit_linear,
    "logistic": logistic.fit_logistic,
    "kmeans": kmeans.fit_kmeans,
    "fpn": decoder_training.fit_decoder,
    "upernet": decoder_training.fit_decoder,
}
"""Function of (encoder, images to learn from, config, out, progress) by method."""


def evaluate(
    encoder: Encoder,
    data: str | Path,
    config: SegmentationConfig,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure mIoU, aAcc and mAcc over the pixels of the test images that are not void.

    `registry.Evaluate` explains the arguments. `fpn` and `upernet` train a copy of the encoder, which must be a network
    of this package. `mIoU baseline` is that of the most frequent class everywhere.

    Raises:
        ValueError: data that cannot be read, settings or an encoder that do not fit, or `out` holds another training.
    """
    if len(encoder.mean) != 3:
        raise ValueError(f"the network takes images of {len(encoder.mean)} channels; segmentation sets are RGB, use 3")
    train, test = open_splits(data, config)
    method = METHODS[config.method](encoder, train, config, out, progress)
    scored = score_images(test, method, out=out, progress=progress)
    settings = method.config.recorded() | {"data": str(data), "kind": test.kind, **method.facts}
    settings |= {"test_images": len(test), "classes": len(test.classes)}
    if isinstance(config, SupervisedConfig):
        settings |= {"train_images": len(train)}
    scores = Scores.of(scored.counts)
    return Result(
        "segment",
        {**scores.metrics(), "mIoU baseline": Scores.of(constant_prediction(scored.counts)).miou},
        scores.rows(test.classes),
        settings,
        pictures=scored.pictures,
        per_image=scored.per_image,
    )
