"""Labelled images of semantic segmentation, one class number per pixel, as the published sets lie on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.data.decode.pillow import read_image
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.segmentation import class_names
from selfpatch.evaluation.segmentation.config import Kind

IGNORE = 255
"""Class number of void pixels, which are neither trained on nor scored."""
UNKNOWN = -1
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore")
IMAGENET_S_VOID = 1000


@dataclass(frozen=True)
class SegmentationSet:
    """The images of one split and their labels.

    Attributes:
        classes: names, in the order of the class numbers.
        names: unique name of each image: its path below the folder of images, without suffix.
        images, labels: the files, in the order of the names.
        table: [n] int64 class number, IGNORE or UNKNOWN of each value in a label file.
        kind: kind of the set, as given or found.
    """

    classes: tuple[str, ...]
    names: list[str]
    images: list[Path]
    labels: list[Path]
    table: np.ndarray
    kind: Kind = "folder"

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """Read the i-th image as RGB, and its classes [h, w] int64, where IGNORE marks void.

        Raises:
            ValueError: a file cannot be read, the two differ in size, or a label is not among the classes.
        """
        image, values = read_image(self.images[i]), _read_values(self.labels[i])
        if (image.height, image.width) != values.shape:
            raise ValueError(
                f"{self.images[i]} is {image.width} x {image.height} pixels and its labels {self.labels[i]} "
                f"{values.shape[1]} x {values.shape[0]}; use images and labels of one size"
            )
        classes = self.table[np.minimum(values, len(self.table) - 1)]
        unknown = (classes == UNKNOWN) | (values >= len(self.table))
        if unknown.any():
            raise ValueError(
                f"{self.labels[i]} has the label {values[unknown][0]}, which is none of the {len(self.classes)} "
                "classes nor void; check the classes or the kind of the data"
            )
        return image, classes

    def read_all(self, what: str, progress: Progress | None) -> Iterator[tuple[int, Image.Image, np.ndarray]]:
        """Yield each index with what `read` returns; `progress` is called with `what` once an image has been used."""
        for i in range(len(self)):
            yield (i, *self.read(i))
            if progress is not None:
                progress(what, i + 1, len(self))

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of the i-th image, from the header of its label file.

        Raises:
            ValueError: the file cannot be read.
        """
        with _naming_damage(self.labels[i]), Image.open(self.labels[i]) as header:
            return header.height, header.width

    def limited(self, num_images: int | None) -> SegmentationSet:
        """Return at most `num_images` of the images, evenly spread; all of them if it is None."""
        if num_images is None or num_images >= len(self):
            return self
        chosen = evenly_spread(np.arange(len(self)), num_images)
        names, images, labels = ([part[i] for i in chosen] for part in (self.names, self.images, self.labels))
        return replace(self, names=names, images=images, labels=labels)

    def fingerprint(self) -> str:
        """Return a hash of what a training on the set depends on, wherever the set lies.

        It covers the classes, the table, and for each image its name, the size of its file and the bytes of its labels.
        """
        digest = hashlib.sha256(repr(self.classes).encode() + self.table.tobytes())
        for name, image, label in zip(self.names, self.images, self.labels, strict=True):
            digest.update(f"{name!r} {image.stat().st_size} {label.stat().st_size}\n".encode())
            digest.update(label.read_bytes())
        return digest.hexdigest()


def _read_values(path: Path) -> np.ndarray:
    """Read a label file as int64 [h, w]; the value of a colour (ImageNet-S) is red + 256 green."""
    with _naming_damage(path), Image.open(path) as image:
        image.load()
        values = np.asarray(image.convert("RGB") if image.mode == "RGBA" else image).astype(np.int64)
    return values if values.ndim == 2 else values[..., 0] + 256 * values[..., 1]


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"cannot read the labels {path}: {error}") from error


def _table(classes: Mapping[int, int], void: Sequence[int] = ()) -> np.ndarray:
    """Return the values of classes and void as `SegmentationSet.table`; 255 is void unless it is a class."""
    table = np.full(max([IGNORE, *classes, *void]) + 1, UNKNOWN, np.int64)
    table[[IGNORE, *void]] = IGNORE
    table[list(classes)] = list(classes.values())
    return table


def open_dataset(root: str | Path, split: str, kind: Kind | None = None) -> SegmentationSet:
    """Open one split of a labelled set.

    Args:
        root: its folder, as downloaded:

            - ade20k: images/{training,validation}, annotations/...; label 0 is void, 150 classes.
            - voc: VOCdevkit/VOC2012, VOC2012 or its content, with ImageSets/Segmentation; the labels of the split
              `trainaug` are in SegmentationClassAug. 21 classes.
            - coco_stuff171, coco_stuff27: [images/]{train,val}2017, and the label maps in stuffthingmaps/ or
              annotations/; 27 are the super-categories, with the images of curated/.../Coco164kFull_Stuff_Coarse_7.txt
              if it exists.
            - cityscapes: leftImg8bit, gtFine with *_labelIds.png; 19 classes.
            - camvid: images/SPLIT, labels/SPLIT, or SPLIT and SPLITannot; 11 classes, 11 is void.
            - imagenet_s: train-semi, validation and ...-segmentation, one folder per class. Class 0 is `other`; the
              number 255 is skipped, because it is void here.
            - folder: images/SPLIT and labels/SPLIT, or images and labels with SPLIT.txt of names, or these alone (every
              split then has all images); classes.txt has a line `name` or `number name` per class, `void` among them.
        split: `train`, `val`, `test`, or another that the set has.
        kind: kind of the set; if None, it is found from the layout (the COCO sets as 171 classes).

    Raises:
        ValueError: the kind is unknown, a split, folder or list of classes is missing, or an image lacks labels.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give one of labelled images")
    kind = _kind_of(root) if kind is None else kind
    if kind not in OPENERS:
        raise ValueError(f"there is no kind of segmentation data {kind!r}; use one of: {', '.join(OPENERS)}")
    found = OPENERS[kind](root, split)
    if not found.names:
        raise ValueError(f"the split {split!r} of {root} has no image; check the folder")
    return replace(found, kind=kind)


def _kind_of(root: Path) -> Kind:
    folders_of: dict[Kind, list[str]] = {
        "ade20k": ["annotations/training", "annotations/validation"],
        "voc": ["ImageSets/Segmentation", "VOC2012/ImageSets/Segmentation", "VOCdevkit"],
        "cityscapes": ["leftImg8bit"],
        "coco_stuff171": ["stuffthingmaps", "annotations/train2017", "annotations/val2017"],
        "imagenet_s": ["train-semi-segmentation", "validation-segmentation"],
        "camvid": ["trainannot", "valannot", "testannot"],
        "folder": ["labels"],
    }
    for kind, folders in folders_of.items():
        if any((root / folder).is_dir() for folder in folders):
            return kind
    raise ValueError(
        f"{root} has the layout of no known segmentation set; it needs images/ and labels/ at least, or give its kind"
    )


def _folder(root: Path, *choices: str) -> Path:
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise ValueError(f"{root} has no folder {' or '.join(choices)}; check the split, or complete the download")


def _paired(
    classes: tuple[str, ...],
    table: np.ndarray,
    images: Path,
    labels: Path,
    names: Sequence[str] | None = None,
    label_name: Callable[[str], str] = lambda name: name + ".png",
) -> SegmentationSet:
    """Pair the images below a folder, or those named, with the label files of the same paths below another."""
    files = {
        path.relative_to(images).with_suffix("").as_posix(): path
        for path in sorted(images.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    chosen = list(files) if names is None else list(dict.fromkeys(names))
    label_files = {path.relative_to(labels).as_posix() for path in labels.rglob("*.png")}
    for name in chosen:
        if name not in files:
            raise ValueError(f"{images} lacks the listed image {name!r}; complete the download")
        if label_name(name) not in label_files:
            raise ValueError(f"{files[name]} has no labels {labels / label_name(name)}; each image needs them")
    return SegmentationSet(
        classes, chosen, [files[name] for name in chosen], [labels / label_name(name) for name in chosen], table
    )


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise ValueError(f"there is no list of images {path}; use one of the splits: {splits}")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _ade20k(root: Path, split: str) -> SegmentationSet:
    folder = {"train": "training", "val": "validation"}.get(split, split)
    table = _table({number: number - 1 for number in range(1, 151)}, void=[0])
    return _paired(class_names.ADE20K, table, _folder(root / "images", folder), _folder(root / "annotations", folder))


def _voc(root: Path, split: str) -> SegmentationSet:
    year = _folder(root, "ImageSets/Segmentation", "VOC2012/ImageSets/Segmentation", "VOCdevkit").parents[1]
    if year == root.parent:  # VOCdevkit was found
        years = sorted((root / "VOCdevkit").glob("VOC*"))
        if not years:
            raise ValueError(f"{root / 'VOCdevkit'} has no folder VOC2012; complete the download")
        year = years[-1]
    names = _listed(year / "ImageSets" / "Segmentation" / f"{split}.txt")
    labels = _folder(year, "SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    return _paired(class_names.VOC, _table({n: n for n in range(21)}), _folder(year, "JPEGImages"), labels, names)


def _coco(root: Path, split: str, coarse: bool) -> SegmentationSet:
    folder = {"train": "train2017", "val": "val2017"}.get(split, split)
    images = _folder(root, f"images/{folder}", folder)
    labels = _folder(root, f"stuffthingmaps/{folder}", f"annotations/{folder}", f"stuffthingmaps_trainval2017/{folder}")
    pixels = [(value, *names) for value, names in enumerate(class_names.COCO_PIXELS)]
    if not coarse:
        numbers = {name: number for number, name in enumerate(class_names.COCO_171)}
        table = _table({value: numbers[name] for value, name, _ in pixels if name != "-"})
        return _paired(class_names.COCO_171, table, images, labels)
    table = _table({value: class_names.COCO_27.index(group) for value, _, group in pixels})
    curated = root / "curated" / folder / "Coco164kFull_Stuff_Coarse_7.txt"
    return _paired(class_names.COCO_27, table, images, labels, _listed(curated) if curated.is_file() else None)


def _cityscapes(root: Path, split: str) -> SegmentationSet:
    table = _table({value: i for i, value in enumerate(class_names.CITYSCAPES)}, class_names.CITYSCAPES_VOID)
    names = tuple(class_names.CITYSCAPES.values())
    images, labels = _folder(root / "leftImg8bit", split), _folder(root / "gtFine", split)
    return _paired(
        names, table, images, labels, label_name=lambda n: n.removesuffix("_leftImg8bit") + "_gtFine_labelIds.png"
    )


def _camvid(root: Path, split: str) -> SegmentationSet:
    table = _table({n: n for n in range(11)}, void=[11])
    images = _folder(root, f"images/{split}", split)
    return _paired(class_names.CAMVID, table, images, _folder(root, f"labels/{split}", f"{split}annot"))


def _imagenet_s(root: Path, split: str) -> SegmentationSet:
    folder = {"train": "train-semi", "val": "validation"}.get(split, split)
    images, labels = _folder(root, folder), _folder(root, f"{folder}-segmentation")
    classes = ["other", *sorted(path.name for path in images.iterdir() if path.is_dir())]
    numbers = {value: value + (value >= IGNORE) for value in range(len(classes))}
    if len(classes) > IGNORE:
        classes.insert(IGNORE, "(void)")
    table = _table(numbers, void=[IMAGENET_S_VOID])
    return _paired(tuple(classes), table, images, labels)


def _plain_folder(root: Path, split: str) -> SegmentationSet:
    classes, table = _read_classes(root)
    images, labels = _folder(root, "images"), _folder(root, "labels")
    if (images / split).is_dir():
        return _paired(classes, table, images / split, _folder(labels, split))
    splits = sorted(path.name for path in images.iterdir() if path.is_dir())
    if (root / f"{split}.txt").is_file():
        return _paired(classes, table, images, labels, _listed(root / f"{split}.txt"))
    if splits or (any(root.glob("*.txt")) and any((root / f"{s}.txt").is_file() for s in ("train", "val", "test"))):
        known = ", ".join(splits) or "those of the lists *.txt"
        raise ValueError(f"{root} has no split {split!r}; use one of: {known}")
    return _paired(classes, table, images, labels)


def _read_classes(root: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Read the names in classes.txt or class_names.txt, and return them with the table of their values."""
    path = next((p for p in (root / "classes.txt", root / "class_names.txt") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{root} has no classes.txt; write one with a line `number name` per class")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    numbered = all(line.split()[0].isdecimal() for line in lines)
    entries = [(int(n), name.strip()) for n, _, name in (line.partition(" ") for line in lines)] if numbered else []
    entries = entries or list(enumerate(lines))
    values = [value for value, name in entries if name.lower() not in VOID_NAMES]
    void = [value for value, name in entries if name.lower() in VOID_NAMES]
    if not values or len(set(values)) < len(values) or len(values) > IGNORE:
        raise ValueError(f"{path} lists {len(values)} classes, some twice or too many; use 1 to {IGNORE} numbers")
    names = dict(entries)
    return tuple(names[value] for value in values), _table({value: i for i, value in enumerate(values)}, void)


OPENERS: dict[Kind, Callable[[Path, str], SegmentationSet]] = {
    "ade20k": _ade20k,
    "voc": _voc,
    "coco_stuff171": lambda root, split: _coco(root, split, coarse=False),
    "coco_stuff27": lambda root, split: _coco(root, split, coarse=True),
    "cityscapes": _cityscapes,
    "camvid": _camvid,
    "imagenet_s": _imagenet_s,
    "folder": _plain_folder,
}
