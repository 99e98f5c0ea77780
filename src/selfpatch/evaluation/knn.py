"""Weighted k-nearest-neighbour classification of image features (Wu et al., arXiv 1805.01978; as in DINO's code)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.data.images import load_images
from selfpatch.data.index import ImageIndex
from selfpatch.evaluation.result import Cell, Progress, Provenance, Result
from selfpatch.ops.features import image_features
from selfpatch.types import Encoder

MAX_COSINES = 2**26
"""That are held at once: 256 MB."""


def knn_predict(
    train: Tensor, train_labels: Tensor, test: Tensor, *, k: int, temperature: float = 0.07, num_classes: int
) -> Tensor:
    """The votes of the nearest training features::

        for each test feature i:
            for each of the k training features j with the largest cosine(i, j):
                votes[i, label[j]] += exp(cosine(i, j) / temperature)

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
        ValueError: k is not between 1 and n.
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
    """
    if not 1 <= k < len(features):
        raise ValueError(f"k is {k} for {len(features)} features; leaving one out, use 1 to {len(features) - 1}")
    # The feature itself is struck out by number: a twin of it may stand just as near.
    unit = F.normalize(features, dim=1)
    votes = []
    for rows in torch.arange(len(unit), device=unit.device).split(_chunk(unit)):
        cosine = unit[rows] @ unit.T
        cosine.scatter_(1, rows[:, None], -torch.inf)
        nearest, index = cosine.topk(k, dim=1)
        votes.append(_votes(nearest, labels[index], k, temperature, int(labels.max()) + 1))
    return float((torch.cat(votes).argmax(1) == labels).float().mean())


def _nearest(train: Tensor, train_labels: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[m, k] cosines in descending order, and the labels of the training features they belong to."""
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k} for {len(train)} training features; use 1 to {len(train)}")
    unit = F.normalize(train, dim=1)
    parts = [(F.normalize(part, dim=1) @ unit.T).topk(k, dim=1) for part in test.split(_chunk(unit))]
    cosine, index = (torch.cat(p) for p in zip(*parts, strict=True))
    return cosine, train_labels[index]


def _chunk(train: Tensor) -> int:
    """Features that are compared with all training features at once."""
    return max(1, MAX_COSINES // len(train))


def _votes(cosine: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    votes = cosine.new_zeros(len(cosine), num_classes)
    return votes.scatter_add_(1, labels[:, :k], (cosine[:, :k] / temperature).exp())


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    resize: int = 256,
    crop: int = 224,
    batch_size: int = 64,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """k-NN accuracy of the image features; k = 20 is the number to quote.

    Args:
        encoder: the network.
        data: folder with train/ and val/ (or test/), each with a sub-folder a class.
        out: folder for result.json; None writes nothing.
        ks: numbers of neighbours; those above the number of training images are left out.
        temperature: of a vote's weight.
        resize: shorter side that images are resized to (bicubic).
        crop: side of the centre crop.
        batch_size: images that are encoded at once; speed only.
        weights: what the encoder was made of, for the record.
        progress: called with `train` or `test` and the images done, of that split.

    Raises:
        ValueError: a split or its classes are missing, the test set has a class that the training set has not, or
            there are too few training images for every k.
    """
    train_index, test_index = _open_splits(Path(data).expanduser())
    usable = [k for k in ks if 1 <= k <= len(train_index)]
    if not usable:
        raise ValueError(
            f"ks are {list(ks)} for {len(train_index)} training images; use at least one of 1 to that many"
        )
    train, train_names = _features(encoder, train_index, "train", resize, crop, batch_size, progress)
    test, test_names = _features(encoder, test_index, "test", resize, crop, batch_size, progress)
    device = encoder.device
    number = {name: i for i, name in enumerate(train_index.classes)}
    train_labels, test_labels = (
        torch.tensor([number[n] for n in names], device=device) for names in (train_names, test_names)
    )
    usable = [k for k in usable if k <= len(train)]  # unreadable images are left out
    cosine, neighbours = _nearest(train.to(device), train_labels, test.to(device), max(usable))
    rows: list[dict[str, Cell]] = []
    for k in usable:
        ranked = _votes(cosine, neighbours, k, temperature, len(number)).argsort(dim=1, descending=True, stable=True)
        hits = ranked == test_labels[:, None]
        rows.append({"k": k, **{f"top-{n}": float(hits[:, :n].any(1).float().mean()) for n in (1, 5)}})
    metrics = {f"{name} k={row['k']}": float(row[name]) for row in rows for name in ("top-1", "top-5")}
    settings = {"ks": usable, "temperature": temperature, "resize": resize, "crop": crop, "data": str(data)}
    settings |= {"train_images": len(train), "test_images": len(test), "classes": len(number)}
    result = Result("knn", metrics, rows, settings, weights)
    if out is not None:
        result.save(Path(out) / "result.json")
    return result


def _open_splits(root: Path) -> tuple[ImageIndex, ImageIndex]:
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise ValueError(
            f"{root} has no train/ and val/ (or test/); k-NN needs both, with a sub-folder a class in each"
        )
    indices = ImageIndex.open(root / "train"), ImageIndex.open(test)
    for index in indices:
        if not index.classes:
            raise ValueError(
                f"the images in {index.root} do not lie in a sub-folder a class, of at least two; sort them"
            )
    unknown = set(indices[1].classes) - set(indices[0].classes)
    if unknown:
        raise ValueError(f"{test} has classes that train/ has not, e.g. {min(unknown)!r}; both need the same names")
    return indices


def _class_name(index: ImageIndex, place: int) -> str:
    label = index.label(place)
    assert label is not None  # `_open_splits` saw to it
    return index.classes[label]


def _features(
    encoder: Encoder,
    index: ImageIndex,
    split: str,
    resize: int,
    crop: int,
    batch_size: int,
    progress: Progress | None,
) -> tuple[Tensor, list[str]]:
    """Features [n, D] and class names of the images that can be read."""
    names: list[str] = []

    def batches() -> Iterator[Tensor]:
        for places in np.split(np.arange(len(index)), range(batch_size, len(index), batch_size)):
            loaded = load_images(index, places, crop, resize=resize, channels=len(encoder.mean))
            names.extend(_class_name(index, int(place)) for place in loaded.places)
            yield loaded.images
            if progress is not None:
                progress(split, int(places[-1]) + 1, len(index))

    return image_features(encoder, batches()), names
