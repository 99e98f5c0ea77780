"""Top-1 and top-5 accuracy, per image and per class, and notes on unreadable images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfpatch.evaluation.classification.dataset import CropValues, LabelledImages
from selfpatch.evaluation.result import Cell, Result, unreadable_note

_SCORED_AT_ONCE = 4096


def top_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Return whether the true class is the first, and among the first five, as [m, 2] bool.

    Of equal scores the class of the lower number comes first. Scores are [m, K], labels [m] int64 on the same device.
    """
    parts = []
    for block, truth in zip(scores.split(_SCORED_AT_ONCE), labels.split(_SCORED_AT_ONCE), strict=True):
        hits = block.argsort(dim=1, descending=True, stable=True)[:, :5] == truth[:, None]
        parts.append(torch.stack([hits[:, 0], hits.any(1)], dim=1))
    return torch.cat(parts)


def accuracies(hits: Tensor) -> dict[str, float]:
    """Return the top-1 and top-5 accuracy of `top_hits`."""
    top1, top5 = hits.float().mean(0).tolist()
    return {"top-1": top1, "top-5": top5}


def unreadable(images: LabelledImages, read: list[str]) -> list[str]:
    """Return the paths, below the folder of the data, of the images that are not among those `read`."""
    kept = set(read)
    names = (images.name(i) for i in range(len(images)))
    return [f"{Path(images.index.root).name}/{name}" for name in names if name not in kept]


def trained_result(
    name: str,
    train: LabelledImages,
    test: LabelledImages,
    tested: CropValues,
    train_hits: Tensor,
    *,
    per_class: bool,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Cell]] = (),
) -> Result:
    """Return the result of a protocol that trained on labelled images, from `top_hits` of test and training images.

    With `per_class`, the table has one row per tested class in place of `rows`: its number of images and their
    accuracies. The numbers of images and classes are added to the settings.
    """
    if per_class:
        of_class = {label: tested.values[tested.labels == label] for label in tested.labels.unique().tolist()}
        rows = [
            {"class": train.classes[label], "images": len(hits), **accuracies(hits)} for label, hits in of_class.items()
        ]
    missing = unreadable(test, tested.names)
    counts = {"train_images": len(train), "test_images": len(tested.names), "classes": len(train.classes)}
    per_image = zip(tested.names, tested.values.float().tolist(), strict=True)
    return Result(
        name,
        {**accuracies(tested.values), "train top-1": accuracies(train_hits)["top-1"]},
        list(rows),
        {**settings, **counts, "unreadable": len(missing)},
        per_image={image: {"top-1": top1, "top-5": top5} for image, (top1, top5) in per_image},
        notes=unreadable_note(missing),
    )
