"""What all methods share: the splits they are given, and the scores and pictures of what they predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.evaluation.result import Progress, Provenance, Result
from selfpatch.evaluation.segmentation.dataset import SegmentationSet, open_dataset
from selfpatch.evaluation.segmentation.metrics import Scores, confusion
from selfpatch.evaluation.segmentation.visualize import OverlaySheet

Predict = Callable[[Image.Image], Tensor]
"""RGB image -> int64 [h, w] class numbers, at the size of its labels."""


def check_at_least(minimum: int, **settings: float | None) -> None:
    """Refuses settings that are too small.

    Raises:
        ValueError: a setting that is not None is less.
    """
    for name, value in settings.items():
        if value is not None and not value >= minimum:
            raise ValueError(f"{name} is {value}; use {minimum} or more")


def check_rates(lr: float, weight_decay: float) -> None:
    """Refuses what cannot be trained with.

    Raises:
        ValueError: a rate that no optimizer can take.
    """
    if not lr > 0:
        raise ValueError(f"lr is {lr}; use a number above 0")
    check_at_least(0, weight_decay=weight_decay)


def open_splits(
    data: str | Path,
    kind: str | None,
    train_split: str,
    test_split: str,
    limit: int | None,
) -> tuple[SegmentationSet, SegmentationSet]:
    """The images to learn from and those to be scored on, so many of each.

    Raises:
        ValueError: as `open_dataset`; or the limit is less than 1, an image is in both, or their classes differ.
    """
    check_at_least(1, limit=limit)
    train, test = (open_dataset(data, split, kind) for split in (train_split, test_split))
    both = set(train.images) & set(test.images)
    if both:
        raise ValueError(
            f"{len(both)} images of {test_split!r} are in {train_split!r} too, e.g. {min(both)}; give two splits"
        )
    if train.classes != test.classes:
        raise ValueError(f"{train_split} and {test_split} of {data} have different classes; use splits of one set")
    return train.limited(limit), test.limited(limit)


@dataclass(frozen=True)
class Scored:
    """What a method reaches on a set; `per_image` and `pictures` as `Result` has them."""

    counts: Tensor
    """[C, C] int64 pixels of (class, predicted class)."""
    per_image: dict[str, dict[str, float]]
    pictures: list[str]

    @property
    def scores(self) -> Scores:
        return Scores.of(self.counts)

    def result(self, classes: Sequence[str], settings: Mapping[str, Any], weights: Provenance | None) -> Result:
        """With the mIoU of the most frequent class everywhere beside that of the method."""
        return Result(
            "segment",
            {**self.scores.metrics(), "mIoU floor": floor(self.counts)},
            self.scores.rows(classes),
            settings,
            weights,
            pictures=self.pictures,
            per_image=self.per_image,
        )


def floor(counts: Tensor) -> float:
    """The mIoU of the most frequent class everywhere."""
    constant = torch.zeros_like(counts)
    constant[:, counts.sum(1).argmax()] = counts.sum(1)
    return Scores.of(constant).miou


def score_images(
    dataset: SegmentationSet,
    predict: Predict,
    *,
    out: str | Path | None = None,
    max_pictures: int = 4,
    truth: Callable[[np.ndarray], np.ndarray] = lambda label: label,
    progress: Progress | None = None,
) -> Scored:
    """Predicts each image and counts, over all pixels that are not void::

        for each image:
            counts[truth, prediction] += 1 for each pixel
        IoU of a class = counts[c, c] / (counts[c, :] + counts[:, c] - counts[c, c])

    Args:
        dataset: the images and their labels.
        predict: the method.
        out: folder for pictures/segments.png; None: no picture.
        max_pictures: images on it, evenly spread.
        truth: what is done to labels before they are compared, where a protocol scores at another size.
        progress: called with `scoring` and the images done.

    Raises:
        ValueError: an image or its labels cannot be read, or no pixel is labelled.
    """
    num_classes = len(dataset.classes)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    per_image: dict[str, dict[str, float]] = {}
    sheet = OverlaySheet(len(dataset), max_pictures if out is not None else 0)
    for i, name in enumerate(dataset.names):
        image, label = dataset.read(i)
        label = truth(label)
        prediction = predict(image).cpu()
        of_image = confusion(prediction, label, num_classes)
        counts += of_image
        if of_image.any():
            per_image[name] = {"miou_image": Scores.of(of_image).miou}
        if sheet.wants(i):
            sheet.add(image, label, prediction.numpy())
        if progress is not None:
            progress("scoring", i + 1, len(dataset))
    if not counts.any():
        raise ValueError(f"all labels of {dataset.labels[0].parent} are void; there is nothing to score")
    return Scored(counts, per_image, sheet.save(out))
