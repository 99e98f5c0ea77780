"""What a protocol that classifies images has found: accuracies, by image and by class, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfpatch.evaluation.classification.dataset import LabelledImages
from selfpatch.evaluation.result import Cell, Provenance, Result

_SCORED_AT_ONCE = 4096
_NAMED = 5
"""Unreadable images that a note names."""


class Tested(NamedTuple):
    """How the images that could be read were classified."""

    hits: Tensor
    """[n, 2] bool, as `top_hits` gives them."""
    labels: Tensor
    """[n] int64."""
    names: list[str]


def top_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the true class is the first, and among the first five; of equal scores the class of the lower number
    comes first.

    Args:
        scores: [m, K].
        labels: [m] int64, on the same device.

    Returns:
        [m, 2] bool.
    """
    parts = []
    for some, truth in zip(scores.split(_SCORED_AT_ONCE), labels.split(_SCORED_AT_ONCE), strict=True):
        hits = some.argsort(dim=1, descending=True, stable=True)[:, :5] == truth[:, None]
        parts.append(torch.stack([hits[:, 0], hits.any(1)], dim=1))
    return torch.cat(parts)


def accuracies(hits: Tensor) -> dict[str, float]:
    """Top-1 and top-5 of `top_hits`."""
    top1, top5 = hits.float().mean(0).tolist()
    return {"top-1": top1, "top-5": top5}


def hits_per_image(names: list[str], hits: Tensor) -> dict[str, Mapping[str, float]]:
    """As `Result.per_image` has them."""
    rows = hits.float().tolist()
    return {name: {"top-1": top1, "top-5": top5} for name, (top1, top5) in zip(names, rows, strict=True)}


def rows_per_class(classes: tuple[str, ...], labels: Tensor, hits: Tensor) -> list[dict[str, Cell]]:
    """Of each class that was tested: its images and their accuracies."""
    rows: list[dict[str, Cell]] = []
    for number in labels.unique().tolist():
        of_class = hits[labels == number]
        rows.append({"class": classes[number], "images": len(of_class), **accuracies(of_class)})
    return rows


def unreadable(images: LabelledImages, read: list[str]) -> list[str]:
    """Paths, below the folder of the data, of the images that are not among those `read`."""
    kept = set(read)
    every = (images.name(i) for i in range(len(images)))
    return [f"{Path(images.index.root).name}/{name}" for name in every if name not in kept]


def unreadable_note(names: list[str]) -> list[str]:
    """As `Result.notes` has it: a sentence where there are any."""
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    count = "1 image" if len(names) == 1 else f"{len(names)} images"
    return [f"{count} could not be read, left out: {shown}"] if names else []


def trained_result(
    name: str,
    train: LabelledImages,
    test: LabelledImages,
    tested: Tested,
    train_hits: Tensor,
    *,
    settings: Mapping[str, Any],
    weights: Provenance | None,
    rows: Sequence[Mapping[str, Cell]] = (),
    per_class: bool = False,
) -> Result:
    """Of a protocol that learned from labelled images.

    Args:
        tested: what could be read of the test images.
        train_hits: [n, 2] of some training images, as `Tested.hits`.
        settings: to which the numbers of images and classes are added.
        rows: of the table; with `per_class`, a row for each class is in their place.
    """
    lost = unreadable(test, tested.names)
    counts = {"train_images": len(train), "test_images": len(tested.names), "classes": len(train.classes)}
    return Result(
        name,
        {**accuracies(tested.hits), "train top-1": accuracies(train_hits)["top-1"]},
        rows_per_class(train.classes, tested.labels, tested.hits) if per_class else list(rows),
        {**settings, **counts, "unreadable": len(lost)},
        weights,
        per_image=hits_per_image(tested.names, tested.hits),
        notes=unreadable_note(lost),
    )
