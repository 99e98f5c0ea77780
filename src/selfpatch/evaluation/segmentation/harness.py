"""Frame of every segmentation method: the split to learn from, the scores and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.segmentation.config import SegmentationConfig, SupervisedConfig
from selfpatch.evaluation.segmentation.dataset import SegmentationSet, open_dataset
from selfpatch.evaluation.segmentation.metrics import Scores, confusion
from selfpatch.evaluation.segmentation.visualize import OverlaySheet

Predict = Callable[[Image.Image], Tensor]
"""Function of an RGB image that returns its class numbers, int64 [h, w], at the size of its labels."""


@dataclass(frozen=True)
class FittedMethod:
    """A segmentation method after it has learned.

    Attributes:
        predict: function that segments an image.
        config: its settings, with derived values filled in.
        facts: further values to record.
        reduce_labels: change of labels before they are compared, where a protocol scores at another size.
    """

    predict: Predict
    config: SegmentationConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    reduce_labels: Callable[[np.ndarray], np.ndarray] | None = None


def open_splits(data: str | Path, config: SegmentationConfig) -> tuple[SegmentationSet, SegmentationSet]:
    """Open the images to learn from and those to score; a method without training learns from the latter.

    Raises:
        ValueError: `open_dataset` refuses a split, an image is in both, or their classes differ.
    """
    test = open_dataset(data, config.test_split, config.kind)
    if not isinstance(config, SupervisedConfig):
        return test.limited(config.limit), test.limited(config.limit)
    train = open_dataset(data, config.train_split, config.kind)
    shared = set(train.images) & set(test.images)
    if shared:
        raise ValueError(
            f"{len(shared)} images of {config.test_split!r} are in {config.train_split!r} too, e.g. {min(shared)}; "
            "give two splits"
        )
    if train.classes != test.classes:
        raise ValueError(
            f"{config.train_split} and {config.test_split} of {data} have different classes; use splits of one set"
        )
    return train.limited(config.limit), test.limited(config.limit)


class Scored(NamedTuple):
    """Confusion matrix, values per image and pictures of a scored set."""

    counts: Tensor  # [C, C] int64 pixels of (class, predicted class)
    per_image: dict[str, dict[str, float]]
    pictures: list[str]


def score_images(
    images: SegmentationSet, method: FittedMethod, *, out: Path | None = None, progress: Progress | None = None
) -> Scored:
    """Segment each image and count, over all pixels that are not void.

        for each image:
            counts[truth, prediction] += 1 for each pixel
        IoU of a class = counts[c, c] / (counts[c, :] + counts[:, c] - counts[c, c])

    Args:
        images: the images and their labels.
        method: the segmentation method.
        out: folder for pictures/segments.png; if None, nothing is written.
        progress: called with `scoring` and the number of images done.

    Raises:
        ValueError: an image or its labels cannot be read, or no pixel is labelled.
    """
    num_classes = len(images.classes)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    per_image: dict[str, dict[str, float]] = {}
    sheet = OverlaySheet(len(images), method.config.max_pictures if out is not None else 0)
    for i, image, labels in images.read_all("scoring", progress):
        if method.reduce_labels is not None:
            labels = method.reduce_labels(labels)
        prediction = method.predict(image).cpu()
        counts_of_image = confusion(prediction, labels, num_classes)
        counts += counts_of_image
        if counts_of_image.any():
            per_image[images.names[i]] = {"miou_image": Scores.of(counts_of_image).miou}
        if sheet.wants(i):
            sheet.add(image, labels, prediction.numpy())
    if not counts.any():
        raise ValueError(f"all labels of {images.labels[0].parent} are void; there is nothing to score")
    return Scored(counts, per_image, sheet.save(out))
