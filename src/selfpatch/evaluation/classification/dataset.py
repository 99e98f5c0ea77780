"""Labelled images, in one folder per class or as published: splits, subsets of labels, and centre crops."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.distributed import gather, gather_rows
from selfpatch.core.text_files import numbered_lines
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.data.decode.pillow import BadImage, Picture, read_picture
from selfpatch.data.images import NoneReadable, evenly_spread, load_images
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.classification.config import ClassificationConfig
from selfpatch.evaluation.classification.published_sets import Categories, PublishedSet, read_published
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.sharding import share_of
from selfpatch.ops.images import to_common_dtype

_SUBSET_STREAM, _HELD_OUT_STREAM = 2**32 + 2, 2**32 + 3


@dataclass(frozen=True)
class LabelledImages:
    """Some images of an index, with class numbers that the training and the test set share."""

    index: ImageIndex
    indices: np.ndarray  # [n] int64, in the index
    labels: np.ndarray  # [n] int64, in `classes`
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, i: int) -> str:
        """Return the path of the i-th image below the folder of its split."""
        return self.index.name(int(self.indices[i]))

    def read(self, i: int, channels: int) -> Picture:
        """Read the i-th image; raise ValueError if it cannot be read."""
        try:
            return read_picture(self.index.file(int(self.indices[i])), channels)
        except BadImage as error:
            raise ValueError(f"{error}; remove it from the training images, or repair it") from None

    def subset(self, chosen: np.ndarray) -> "LabelledImages":
        """Return the images at the [n] int64 positions `chosen`."""
        return replace(self, indices=self.indices[chosen], labels=self.labels[chosen])

    def limited(self, num_images: int) -> "LabelledImages":
        """Return at most `num_images` of the images, evenly spread over the classes."""
        return self.subset(evenly_spread(np.arange(len(self)), num_images))

    @property
    def fingerprint(self) -> str:
        """Hash of the names of the images, the sizes of their files, and their labels."""
        digest = hashlib.sha256(self.index.fingerprint.encode() + self.index.stamps()[:, 0].astype("<i8").tobytes())
        digest.update(self.indices.astype("<i8").tobytes() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]


def open_splits(
    root: Path, limit: int | None = None, labels: str | None = None, seed: int = 0
) -> tuple[LabelledImages, LabelledImages]:
    """Open the training images whose `labels` are used and the test images of a data set, at most `limit` of each.

    They are those of train/ and of val/ (or test/), with one sub-folder per class in each, or those that
    `read_published` finds.

    Raises:
        ValueError: a split or its classes are missing, the test set has a class that the training set lacks, or as
            `with_labels`.
    """
    train, test = _open_splits(root)
    train = with_labels(train, labels, seed)
    return (train, test) if limit is None else (train.limited(limit), test.limited(limit))


def _open_splits(root: Path) -> tuple[LabelledImages, LabelledImages]:
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        if (found := read_published(root)) is not None:
            return _from_published(root, found)
        raise ValueError(
            f"{root} has no train/ and val/ (or test/); this evaluation needs both, with one sub-folder per class, or "
            "iNaturalist, Oxford Flowers, Stanford Cars or CUB-200-2011 as downloaded"
        )
    splits = ImageIndex.open(root / "train"), ImageIndex.open(test)
    for index in splits:
        if not index.classes:
            raise ValueError(
                f"the images in {index.root} do not lie in one sub-folder per class, at least two; sort them"
            )
    classes = splits[0].classes
    unknown = set(splits[1].classes) - set(classes)
    if unknown:
        raise ValueError(f"{test} has classes that train/ lacks, e.g. {min(unknown)!r}; both need the same names")

    number = {name: i for i, name in enumerate(classes)}

    def labelled(index: ImageIndex) -> LabelledImages:
        class_of_folder = np.array([number[name] for name in index.classes], np.int64)
        folders = np.array([index.label(i) for i in range(len(index))], np.int64)
        return LabelledImages(index, np.arange(len(index)), class_of_folder[folders], classes)

    return labelled(splits[0]), labelled(splits[1])


def _from_published(root: Path, found: PublishedSet) -> tuple[LabelledImages, LabelledImages]:
    categories = sorted({*found.train.values()})
    number = {category: i for i, category in enumerate(categories)}
    classes = tuple(found.names.get(category, str(category)) for category in categories)

    def labelled(split: Categories) -> LabelledImages:
        files = sorted(split)
        index = ImageIndex(root, [os.fsencode(file) for file in files])
        return LabelledImages(index, np.arange(len(files)), np.array([number[split[file]] for file in files]), classes)

    return labelled(found.train), labelled(found.test)


def split_sizes(train: LabelledImages, test: LabelledImages) -> dict[str, int]:
    """Return the sizes of both splits by name."""
    return {"training images": len(train), "test images": len(test), "classes": len(train.classes)}


def with_labels(images: LabelledImages, labels: str | None, seed: int) -> LabelledImages:
    """Return the training images whose labels a semi-supervised protocol may use.

    Args:
        images: all training images.
        labels: a share such as `1%`: that share of all images, equally many per class (SimCLR, arXiv 2002.05709,
            section 6), where a class that has fewer gives all and the others fill the share; or a text file with one
            image per line, as SimCLR's lists are: its name, its path below train/, or this path with train/ in front;
            if None, all.
        seed: seed of the choice. A larger share contains a smaller one of the same seed.

    Raises:
        ValueError: `labels` is neither a share nor a file, or the file names an image that is missing or ambiguous.
    """
    if labels is None:
        return images
    if (share := re.fullmatch(r"(\d+(?:\.\d+)?)%", labels.strip())) is not None:
        if not 0 < float(share[1]) <= 100:
            raise ValueError(f"labels is {labels!r}; use more than 0% and at most 100%")
        count = _images_per_class(images, float(share[1]) / 100)
        return images.subset(_first_of_each_class(images, seed, _SUBSET_STREAM, lambda size: min(size, count)))
    if not Path(labels).expanduser().is_file():
        raise ValueError(f"labels is {labels!r}, neither a share such as 1% or 10% nor a text file of image names")
    return _listed(images, Path(labels).expanduser())


def _images_per_class(images: LabelledImages, share: float) -> int:
    """Return the largest number of images of a class with which all classes together come closest to the share."""
    sizes = np.bincount(images.labels)
    totals = (len(sizes) - np.bincount(sizes).cumsum()).cumsum()[:-1]  # of 1, 2, ... images of each that has them
    return 1 + int(np.abs(totals - share * len(images)).argmin())


def _first_of_each_class(images: LabelledImages, seed: int, stream: int, count_of: Callable[[int], int]) -> np.ndarray:
    """Return the sorted positions of the images that come first in their class, in an order drawn from the seed."""
    draws = generator(seed, 0, 0, stream).random(len(images))
    sizes = np.bincount(images.labels, minlength=len(images.classes))
    classes = np.split(np.lexsort((draws, images.labels)), sizes.cumsum()[:-1])  # positions of each, by their draws
    return np.sort(np.concatenate([members[: count_of(len(members))] for members in classes]))


def _listed(images: LabelledImages, file: Path) -> LabelledImages:
    root = Path(images.index.root)
    wanted: dict[str, int] = {}
    for number, line in numbered_lines(file):
        wanted.setdefault(line.removeprefix("./").removeprefix(f"{root.name}/"), number)
    positions: dict[str, list[int]] = {}
    for i in range(len(images)):
        name = images.name(i)
        for alias in {name, name.rpartition("/")[2]} & wanted.keys():
            positions.setdefault(alias, []).append(i)
    if wrong := [name for name in wanted if len(positions.get(name, ())) != 1]:
        found = "several training images are" if wrong[0] in positions else "no training image is"
        raise ValueError(
            f"line {wanted[wrong[0]]} of {file} is {wrong[0]!r}, which {found} called ({len(wrong)} of {len(wanted)} "
            f"names do not fit); list paths below {root}, without a header"
        )
    if not wanted:
        raise ValueError(f"{file} lists no images; write one name per line")
    return images.subset(np.sort(np.array([positions[name][0] for name in wanted], np.int64)))


def hold_out(images: LabelledImages, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the positions of training images into those to train on and those to choose settings by, both sorted.

    The latter are a share of each class: at least one image, but never its last. Raise ValueError if there are none.
    """
    held = _first_of_each_class(
        images, seed, _HELD_OUT_STREAM, lambda size: min(size - 1, max(1, round(share * size))) if size else 0
    )
    if not len(held):
        raise ValueError("each class has one labelled image, none to hold out and choose by; give one learning rate")
    return np.setdiff1d(np.arange(len(images)), held), held


class CropValues(NamedTuple):
    """Values of a function of the centre crops of the readable images of a set."""

    values: Tensor  # [n, ...] on the CPU
    labels: Tensor  # [n] int64
    names: list[str]


def map_centre_crops(
    function: Callable[[Tensor, Tensor], Tensor],
    images: LabelledImages,
    config: ClassificationConfig,
    channels: int,
    what: str,
    progress: Progress,
    *,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> CropValues:
    """Apply a function to the centre crops of all images, in their order; unreadable ones are left out.

    The function takes crops [b, C, crop, crop], as `load_images` gives them, and their labels [b] int64. `progress`
    receives `what` and the number of images done after each batch. Each of several processes computes its share of the
    batches, and all receive all values. Raise ValueError if no image can be read.
    """
    values, labels, names, errors = [], [], [], []
    batches = np.split(np.arange(len(images)), range(config.encode_batch, len(images), config.encode_batch))
    mine = [batches[number] for number in share_of(len(batches))]
    for positions in mine:
        wanted = images.indices[positions]
        try:
            loaded = load_images(
                images.index, wanted, config.crop, resize=config.resize, channels=channels, resampling=resampling
            )
        except NoneReadable as error:
            errors.append(str(error.example))
        else:
            read = positions[np.isin(wanted, loaded.indices)]
            labels.append(torch.from_numpy(images.labels[read]))
            values.append(function(loaded.images, labels[-1]).cpu())
            names += [images.name(int(i)) for i in read]
        progress(what, int(positions[-1] - mine[0][0]) + 1, int(mine[-1][-1] - mine[0][0]) + 1)
    names, errors = gather(names), gather(errors)
    if not names:
        raise NoneReadable(len(images), errors[0])
    return CropValues(gather_rows(values), gather_rows(labels), names)


def check_crop(encoder: Encoder, config: ClassificationConfig) -> None:
    """Raise ValueError before the evaluation begins if the patch size does not divide the crop."""
    patch = encoder.patch_size
    if config.crop % patch:
        nearest = max(patch, round(config.crop / patch) * patch)
        raise ValueError(f"crop is {config.crop}, no multiple of the patch size {patch}; use e.g. {nearest}")


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return images of one size [C, S, S] and their labels as a batch."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(to_common_dtype(images)), torch.tensor(labels)
