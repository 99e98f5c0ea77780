"""Labelled images in folders, one a class: reading them, and training on some of them only.

Shared by all protocols that classify images; `accuracy` is what they have found.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.data.decode.pillow import BadImage, Picture, read_picture
from selfpatch.data.images import NoneReadable, evenly_spread, load_images
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.result import Progress
from selfpatch.ops.images import one_depth

Precision = Literal["float32", "bf16"]
_SUBSET_STREAM, _HELD_OUT_STREAM = 2**32 + 2, 2**32 + 3


@dataclass(frozen=True)
class LabelledImages:
    """Some images of an index, with numbers of classes that a training and a test set share.

    Attributes:
        places: [n] int64, in the index.
        labels: [n] int64, places in `classes`.
    """

    index: ImageIndex
    places: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, number: int) -> str:
        """Path of an image below the folder of its split."""
        return self.index.path(int(self.places[number])).relative_to(self.index.root).as_posix()

    def read(self, number: int, channels: int) -> Picture:
        """Raises ValueError where the image cannot be read."""
        try:
            return read_picture(self.index.file(int(self.places[number])), channels)
        except BadImage as error:
            raise ValueError(f"{error}; remove it from the training images, or mend it") from None

    def only(self, numbers: np.ndarray) -> LabelledImages:
        return replace(self, places=self.places[numbers], labels=self.labels[numbers])

    def some(self, count: int) -> LabelledImages:
        """So many of them, evenly spread over the classes; all where there are no more."""
        return self.only(evenly_spread(np.arange(len(self)), count))

    @property
    def fingerprint(self) -> str:
        """Another where the images or their labels are others."""
        digest = hashlib.sha256(self.index.fingerprint.encode())
        digest.update(self.places.astype("<i8").tobytes() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]


def open_splits(root: Path) -> tuple[LabelledImages, LabelledImages]:
    """The images of train/ and of val/, or test/, with a sub-folder a class in each.

    Raises:
        ValueError: a split or its classes are missing, or the test set has a class that the training set has not.
    """
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise ValueError(
            f"{root} has no train/ and val/ (or test/); this evaluation needs both, with a sub-folder a class in each"
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
    classes = indices[0].classes
    return _labelled(indices[0], classes), _labelled(indices[1], classes)


def _labelled(index: ImageIndex, classes: tuple[str, ...]) -> LabelledImages:
    number = {name: i for i, name in enumerate(classes)}
    here = np.array([number[name] for name in index.classes], np.int64)
    own = np.array([index.label(place) for place in range(len(index))], np.int64)
    return LabelledImages(index, np.arange(len(index)), here[own], classes)


def with_labels(images: LabelledImages, labels: str | None, seed: int) -> LabelledImages:
    """The training images whose labels may be used, for semi-supervised protocols.

    Args:
        labels: a share such as `1%`: that share of all images, the same number of each class (SimCLR, arXiv
            2002.05709, section 6), as far as the class has so many; or a text file with one image a line, by its name
            or its path below train/, as SimCLR's lists are; None: all.
        seed: decides which. A larger share contains a smaller one of the same seed.

    Raises:
        ValueError: neither a share nor a file, or the file names an image that is not there, or no unique one.
    """
    if labels is None:
        return images
    if (share := re.fullmatch(r"(\d+(?:\.\d+)?)%", labels.strip())) is not None:
        if not 0 < float(share[1]) <= 100:
            raise ValueError(f"labels is {labels!r}; use more than 0% and at most 100%")
        return _same_of_each_class(images, float(share[1]) / 100, seed)
    if not Path(labels).expanduser().is_file():
        raise ValueError(f"labels is {labels!r}, neither a share such as 1% or 10% nor a text file of image names")
    return _listed(images, Path(labels).expanduser())


def _same_of_each_class(images: LabelledImages, share: float, seed: int) -> LabelledImages:
    count = max(1, round(share * len(images) / len(images.classes)))
    return images.only(_first_of_each_class(images, seed, _SUBSET_STREAM, lambda size: min(size, count)))


def _first_of_each_class(images: LabelledImages, seed: int, stream: int, count_of: Callable[[int], int]) -> np.ndarray:
    """Sorted numbers of the images that come first in their class, in an order drawn from the seed."""
    draws = generator(seed, 0, 0, stream).random(len(images))
    chosen = []
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.labels == label)
        order = np.argsort(draws[members], kind="stable")
        chosen.append(members[order[: count_of(len(members))]])
    return np.sort(np.concatenate(chosen))


def _listed(images: LabelledImages, file: Path) -> LabelledImages:
    names = [images.name(i) for i in range(len(images))]
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for known_as in {name, name.rpartition("/")[2]}:
            places.setdefault(known_as, []).append(i)
    wanted = dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    wanted.pop("", None)
    for name in wanted:
        if len(places.get(name, ())) != 1:
            found = "several training images are" if name in places else "no training image is"
            raise ValueError(f"{file} lists {name!r}, which {found} called; list paths below {images.index.root}")
    if not wanted:
        raise ValueError(f"{file} lists no images; write one name a line")
    return images.only(np.sort(np.array([places[name][0] for name in wanted], np.int64)))


def hold_out(images: LabelledImages, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides training images into those to train on and those to choose settings by: the share of each class, at
    least one image, but never its last.

    Returns:
        Their numbers, sorted, which share none and miss none.

    Raises:
        ValueError: the share is not between 0 and 1, or no class can spare an image.
    """
    if not 0 < share < 1:
        raise ValueError(f"held_out is {share}; use a share between 0 and 1")
    held = _first_of_each_class(
        images, seed, _HELD_OUT_STREAM, lambda size: min(size - 1, max(1, round(share * size))) if size else 0
    )
    if not len(held):
        raise ValueError("each class has one labelled image, none to hold out and choose by; name one learning rate")
    return np.setdiff1d(np.arange(len(images)), held), held


@dataclass(frozen=True)
class Batch:
    """Centre crops, and which images they are of."""

    images: Tensor  # [b, C, crop, crop], uint8 or float32, as `load_images` gives them
    labels: Tensor  # [b] int64
    names: list[str]


def centre_crops(
    images: LabelledImages,
    *,
    resize: int,
    crop: int,
    channels: int,
    batch_size: int,
    what: str = "",
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """All images once, in their order; unreadable ones are left out.

    Args:
        resize: shorter side that images are resized to (bicubic).
        crop: side of the centre crop.
        what: told to `progress`, with the images done.

    Raises:
        ValueError: none of all the images can be read, or as `load_images`.
    """
    empty = []
    batches = np.split(np.arange(len(images)), range(batch_size, len(images), batch_size))
    for numbers in batches:
        try:
            loaded = load_images(images.index, images.places[numbers], crop, resize=resize, channels=channels)
        except NoneReadable as error:
            empty.append(error)
        else:
            read = numbers[np.isin(images.places[numbers], loaded.indices)]
            yield Batch(loaded.images, torch.from_numpy(images.labels[read]), [images.name(int(i)) for i in read])
        if progress is not None:
            progress(what, int(numbers[-1]) + 1, len(images))
    if len(empty) == len(batches):
        raise NoneReadable(len(images), empty[0].example)


def check_settings(encoder: Encoder, *, resize: int, crop: int, precision: str, **least: tuple[int, int]) -> None:
    """What would fail in the midst of an evaluation is said before it begins.

    Args:
        resize: shorter side that images are resized to.
        crop: side of the crops.
        precision: one of `Precision`.
        least: settings by name: (the value, the smallest one that is allowed).

    Raises:
        ValueError: the patch does not divide the crop, the crop is larger than the image, or a setting is none that is
            allowed.
    """
    patch = encoder.patch_size
    if crop < 1 or crop % patch:
        nearest = max(patch, round(crop / patch) * patch)
        raise ValueError(f"crop is {crop}, no multiple of the patch size {patch}; use e.g. {nearest}")
    if resize < crop:
        raise ValueError(f"resize is {resize}, less than the crop of {crop} pixels; use {crop} or more")
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; use one of: {', '.join(get_args(Precision))}")
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; use {smallest} or more")


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Images of one size [C, S, S] and their labels, as a batch."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(one_depth(images)), torch.tensor(labels)
