"""Semantic segmentation with patch features: by retrieval, a linear head, clusters, or a trained decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result
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


def evaluate(encoder: Encoder, data: str | Path, config: SegmentationConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure mIoU, aAcc and mAcc over the pixels of the test images that are not void.

    `registry.Evaluate` explains the arguments. `fpn` and `upernet` train a copy of the encoder, which must be a network
    of this package. `mIoU baseline` is that of the most frequent class everywhere.

    Raises:
        ValueError: data cannot be read, settings or the encoder do not fit, or the folder holds another training.
    """
    if len(encoder.mean) != 3:
        raise ValueError(f"the network takes images of {len(encoder.mean)} channels; segmentation sets are RGB, use 3")
    train, test = open_splits(data, config)
    method = METHODS[config.method](encoder, train, config, output.folder, output.progress)
    scored = score_images(test, method, out=output.folder, progress=output.progress)
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
