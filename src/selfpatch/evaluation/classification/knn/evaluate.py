"""Weighted k-nearest-neighbour classification of image features (Wu et al., arXiv 1805.01978; as in DINO's code)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.classification.dataset import LabelledImages, centre_crops, open_splits
from selfpatch.evaluation.classification.knn.config import KNNConfig
from selfpatch.evaluation.classification.metrics import accuracies, top_hits, unreadable, unreadable_note
from selfpatch.evaluation.result import Cell, Progress, Provenance, Result
from selfpatch.models.features import image_features

MAX_COSINES = 2**26
"""Cosines, or votes for classes, that are held at once: 256 MB."""


def knn_predict(
    train: Tensor, train_labels: Tensor, test: Tensor, *, k: int, temperature: float = 0.07, num_classes: int
) -> Tensor:
    """The votes of the nearest training features::

        for each test feature i:
            for each of the k training features j with the largest cosine(i, j):
                votes[i, label[j]] += exp((cosine(i, j) - the largest cosine) / temperature)

    Wu et al. leave the largest cosine in: that multiplies all votes of i by one number, which low temperatures make
    infinite.

    Args:
        train: [n, D] features of any norm.
        train_labels: [n] int64.
        test: [m, D].
        k: neighbours that vote.
        temperature: of a vote's weight.
        num_classes: classes to vote for.

    Returns:
        [m, num_classes] votes; the largest is the prediction.

    Raises:
        ValueError: k is not between 1 and n, or the temperature is not above 0.
    """
    return _votes(*_nearest(train, train_labels, test, k), k, temperature, num_classes)


@torch.no_grad()
def leave_one_out(features: Tensor, labels: Tensor, k: int, *, temperature: float = 0.07) -> float:
    """Top-1 accuracy of each feature by its k nearest others: a meter that needs one labelled set only.

    Args:
        features: [n, D] of any norm.
        labels: [n] int64.
        k: neighbours that vote, at most n - 1.
        temperature: of a vote's weight.

    Raises:
        ValueError: k is not between 1 and n - 1, or the temperature is not above 0.
    """
    _check_temperature(temperature)
    if not 1 <= k < len(features):
        raise ValueError(f"k is {k} for {len(features)} features; leaving one out, use 1 to {len(features) - 1}")
    # The feature itself is struck out by number: a twin of it may stand just as near.
    unit, num_classes = F.normalize(features, dim=1), int(labels.max()) + 1
    predicted = []
    for rows in torch.arange(len(unit), device=unit.device).split(_rows_at_once(len(unit))):
        cosine = unit[rows] @ unit.T
        cosine.scatter_(1, rows[:, None], -torch.inf)
        nearest, index = cosine.topk(k, dim=1)
        predicted.append(_votes(nearest, labels[index], k, temperature, num_classes).argmax(1))
    return float((torch.cat(predicted) == labels).float().mean())


def _nearest(train: Tensor, train_labels: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[m, k] cosines in descending order, and the labels of the training features they belong to."""
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k} for {len(train)} training features; use 1 to {len(train)}")
    unit = F.normalize(train, dim=1)
    parts = [(F.normalize(part, dim=1) @ unit.T).topk(k, dim=1) for part in test.split(_rows_at_once(len(unit)))]
    cosine, index = (torch.cat(p) for p in zip(*parts, strict=True))
    return cosine, train_labels[index]


def _rows_at_once(columns: int) -> int:
    """Test features that are compared with so many training features, or vote for so many classes, at once."""
    return max(1, MAX_COSINES // columns)


def _votes(cosine: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Of cosines in descending order, as `_nearest` gives them."""
    _check_temperature(temperature)
    votes = cosine.new_zeros(len(cosine), num_classes)
    return votes.scatter_add_(1, labels[:, :k], ((cosine[:, :k] - cosine[:, :1]) / temperature).exp())


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; use a number above 0, e.g. 0.07")


def evaluate(
    encoder: Encoder,
    data: str | Path,
    config: KNNConfig,
    *,
    out: Path | None = None,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure the k-NN accuracy of image features.

    Args:
        encoder: the network.
        data: folder with train/ and val/ (or test/), each with one sub-folder per class.
        config: the settings.
        out: unused; nothing is written.
        weights: what the encoder was made of, for the record.
        progress: called with `train` or `test` and the number of images done, of that split.

    Raises:
        ValueError: a split or its classes are missing, the test set has a class that the training set lacks, or there
            are too few training images for every k.
    """
    train, test = open_splits(Path(data).expanduser())
    usable = [k for k in config.ks if 1 <= k <= len(train)]
    if not usable:
        raise ValueError(
            f"ks are {list(config.ks)} for {len(train)} training images; use at least one of 1 to that many"
        )
    device = encoder.device
    known, known_labels, known_names = _features(encoder, train, "train", config, progress)
    asked, labels, names = _features(encoder, test, "test", config, progress)
    usable = [k for k in usable if k <= len(known)]  # unreadable images are left out
    if not usable:
        raise ValueError(
            f"ks are {list(config.ks)}, but only {len(known)} training images can be read; use at most that many"
        )
    lost = [*unreadable(train, known_names), *unreadable(test, names)]
    cosine, neighbours = _nearest(known.to(device), known_labels.to(device), asked.to(device), max(usable))
    rows: list[dict[str, Cell]] = []
    per_image: dict[str, dict[str, float]] = {name: {} for name in names}
    num_classes = len(train.classes)
    parts = [t.split(_rows_at_once(num_classes)) for t in (cosine, neighbours, labels.to(device))]
    for k in usable:
        hits = torch.cat(
            [
                top_hits(_votes(near, voters, k, config.temperature, num_classes), truth)
                for near, voters, truth in zip(*parts, strict=True)
            ]
        )
        rows.append({"k": k, **accuracies(hits)})
        for name, hit in zip(names, hits[:, 0].tolist(), strict=True):
            per_image[name][f"top-1 k={k}"] = float(hit)
    metrics = {f"{name} k={row['k']}": float(row[name]) for row in rows for name in ("top-1", "top-5")}
    settings = config.recorded() | {"ks": usable, "data": str(data)}
    settings |= {"train_images": len(known), "test_images": len(asked), "classes": num_classes}
    settings |= {"unreadable": len(lost)}
    return Result("knn", metrics, rows, settings, weights, per_image=per_image, notes=unreadable_note(lost))


def _features(
    encoder: Encoder,
    images: LabelledImages,
    split: str,
    config: KNNConfig,
    progress: Progress | None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Features [n, D], labels [n] and names of the images that can be read."""
    labels: list[Tensor] = []
    names: list[str] = []

    def batches() -> Iterator[Tensor]:
        crops = centre_crops(
            images,
            resize=config.resize,
            crop=config.crop,
            channels=len(encoder.mean),
            batch_size=config.encode_batch,
            what=split,
            progress=progress,
        )
        for batch in crops:
            labels.append(batch.labels)
            names.extend(batch.names)
            yield batch.images

    return image_features(encoder, batches()), torch.cat(labels), names
