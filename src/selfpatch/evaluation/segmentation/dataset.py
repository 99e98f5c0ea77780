"""Labelled images of semantic segmentation, one class number per pixel, as the published sets lie on disk."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from PIL import Image

from selfpatch.core.folders import files_below, stems_in, subfolders
from selfpatch.core.text import counted
from selfpatch.core.text_files import numbered_lines, read_text
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.segmentation.base_config import Kind
from selfpatch.evaluation.segmentation.class_file import FORM, read_class_file
from selfpatch.evaluation.segmentation.label_files import label_size, read_label_values
from selfpatch.evaluation.sharding import share_of

IGNORE = 255
"""Class number of void pixels, which are neither trained on nor scored."""
UNKNOWN = -1
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

Classes = tuple[tuple[str, ...], np.ndarray]
"""Names in the order of the class numbers, and a table of the values in label files, as `SegmentationSet` has them."""


@dataclass(frozen=True)
class SegmentationSet:
    """The images of one split and their labels."""

    classes: tuple[str, ...]
    """Names, in the order of the class numbers."""
    names: list[str]
    """Unique name of each image: its path below the folder of images, without suffix."""
    images: list[Path]
    labels: list[Path]
    table: np.ndarray
    """[n] int64 class number, IGNORE or UNKNOWN of each value in a label file."""
    kind: Kind = "folder"

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """Read the i-th image as RGB, and its classes [h, w] int64, where IGNORE marks void.

        Raises:
            ValueError: a file cannot be read, the two differ in size, or a label is not among the classes.
        """
        image, classes = read_image(self.images[i]), self.read_labels(i)
        self._check_size(i, image, *classes.shape)
        return image, classes

    def image(self, i: int) -> LazyImage:
        """Return the i-th image, which is decoded only if its pixels are needed, and then as by `read`."""
        height, width = self.size(i)

        def read() -> Image.Image:
            image = read_image(self.images[i])
            self._check_size(i, image, height, width)
            return image

        return LazyImage(self.images[i], height, width, read)

    def _check_size(self, i: int, image: Image.Image, height: int, width: int) -> None:
        if (image.height, image.width) != (height, width):
            raise ValueError(
                f"{self.images[i]} is {image.width} x {image.height} pixels and its labels {self.labels[i]} "
                f"{width} x {height}; use images and labels of one size"
            )

    def read_labels(self, i: int) -> np.ndarray:
        """Read the classes [h, w] int64 of the i-th image, as `read` does."""
        values = read_label_values(self.labels[i], self.kind)
        classes = self.table.take(values, mode="clip")
        if classes.min() == UNKNOWN or values.max() >= len(self.table):
            unknown = (classes == UNKNOWN) | (values >= len(self.table))
            raise ValueError(
                f"{self.labels[i]} has the label {values[unknown][0]}, which is none of the {len(self.classes)} "
                "classes nor void; check the classes or the kind of the data"
            )
        return classes

    def share(self, what: str, progress: Progress) -> Iterator[tuple[int, LazyImage]]:
        """Yield each index of this process's share of the images, and the image.

        `progress` is called with `what` once an image has been used.
        """
        share = share_of(len(self))
        for done, i in enumerate(share, start=1):
            yield i, self.image(i)
            progress(what, done, len(share))

    def labelled_share(self, what: str, progress: Progress) -> Iterator[tuple[int, LazyImage, np.ndarray]]:
        """Yield what `share` does, and the classes of each image."""
        for i, image in self.share(what, progress):
            yield i, image, self.read_labels(i)

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of the i-th image, from the header of its label file; ValueError if it is damaged."""
        return label_size(self.labels[i], self.kind)

    def limited(self, num_images: int | None) -> "SegmentationSet":
        """Return at most `num_images` of the images, evenly spread; all of them if it is None."""
        if num_images is None or num_images >= len(self):
            return self
        return self.chosen(evenly_spread(np.arange(len(self)), num_images))

    def chosen(self, chosen: np.ndarray) -> "SegmentationSet":
        """Return the images of these positions."""
        names, images, labels = ([part[i] for i in chosen] for part in (self.names, self.images, self.labels))
        return replace(self, names=names, images=images, labels=labels)

    def with_void_class(self, *, labelled: bool) -> "SegmentationSet":
        """Return the set as if void were the class number 0, and the other classes one number higher if 0 is void.

        ::

            0 is a class (VOC):  void becomes class 0 if `labelled`
            0 is void (ADE20K):  classes are (void), then the others; void becomes class 0 if `labelled`

        Void pixels stay void if not `labelled`.

        Raises:
            ValueError: a class would get the number of void.
        """
        void, named = self.table == IGNORE, self.table >= 0
        shift = int(void[0])
        if shift and len(self.classes) >= IGNORE:
            raise ValueError(
                f"void as a class of its own makes {counted(len(self.classes) + 1, 'class')}, of which "
                f"{IGNORE} are possible; set void_as_background to False"
            )
        table = np.where(void, 0 if labelled else IGNORE, np.where(named, self.table + shift, self.table))
        return replace(self, classes=(*["(void)"] * shift, *self.classes), table=table)

    def fingerprint(self) -> str:
        """Return a hash of what a training on the set depends on, wherever the set lies.

        It covers the classes, the table, and for each image its name, the size of its file and the bytes of its labels.
        """
        digest = hashlib.sha256(repr(self.classes).encode() + self.table.tobytes())
        for name, image, label in zip(self.names, self.images, self.labels, strict=True):
            digest.update(f"{name!r} {image.stat().st_size} {label.stat().st_size}\n".encode())
            digest.update(label.read_bytes())
        return digest.hexdigest()


@cache
def published_layouts() -> Mapping[Kind, Mapping[str, Any]]:
    """Return folders and classes of each kind of set, as `datasets.yaml` next to this module explains them."""
    return yaml.safe_load(read_text(Path(__file__).with_name("datasets.yaml")))


def open_dataset(root: str | Path, split: str, kind: Kind | None = None) -> SegmentationSet:
    """Open one split of a labelled set.

    Args:
        root: its folder, as downloaded; `datasets.yaml` lists the folders of each kind. A `folder` has images/SPLIT and
            labels/SPLIT, or images and labels with SPLIT.txt of names, or these alone (every split then has all
            images); `class_file` explains its classes.txt. A line of a list is the name of an image, spaces included.
            Hidden files, and what operating systems leave in folders, are passed over everywhere.
        split: `train`, `val`, `test`, or another that the set has.
        kind: kind of the set; if None, it is found from the layout (the COCO sets as 171 classes).

    Raises:
        ValueError: the kind is unknown, a split, folder or list of classes is missing, or an image lacks labels.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give one of labelled images")
    kind = _kind_of(root) if kind is None else kind
    if kind not in get_args(Kind):
        raise ValueError(f"there is no kind of segmentation data {kind!r}; use one of: {', '.join(get_args(Kind))}")
    found = _open_folder(root, split) if kind == "folder" else _open_published(root, split, kind)
    if not found.names:
        raise ValueError(f"the split {split!r} of {root} has no image; check the folder")
    return replace(found, kind=kind)


def _kind_of(root: Path) -> Kind:
    for kind, layout in published_layouts().items():
        if any((root / folder).is_dir() for folder in layout["found_by"]):
            return kind
    raise ValueError(
        f"{root} has the layout of no known segmentation set; it needs images/ and labels/ at least, or give its kind"
    )


def _open_published(root: Path, split: str, kind: Kind) -> SegmentationSet:
    layout, listed = published_layouts()[kind], None
    folder = layout.get("splits", {}).get(split, split)
    if kind == "voc":
        root = _voc_year(root)
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    images = _folder(root, *layout["images"], split=folder)
    labels = _folder(root, *layout.get(f"labels_of_{split}", layout["labels"]), split=folder)
    if "list" in layout:
        listed = root / layout["list"].format(split=folder)
    if "curated" in layout and (curated := root / layout["curated"].format(split=folder)).is_file():
        listed = curated
    classes = _imagenet_s_classes(images) if kind == "imagenet_s" else published_classes(kind)
    return _paired(classes, images, labels, listed, layout.get("endings", ("", ".png")))


def published_classes(kind: Kind) -> Classes:
    """Return the classes of a published set, which `datasets.yaml` lists."""
    layout = published_layouts()[kind]
    classes = tuple(_split_names(layout.get("classes", "")))
    if "things" not in layout:
        values = layout.get("values") or range(layout.get("first", 0), layout.get("first", 0) + len(classes))
        return classes, _table({value: number for number, value in enumerate(values)}, layout.get("void", ()))
    # A pixel of COCO's stuff-thing maps is COCO's id - 1 (of the 10k release, the id); it is named by its class, or by
    # its super-category.
    things, stuff = (
        [(name, group) for group, names in layout[part].items() for name in _split_names(names)]
        for part in ("things", "stuff")
    )
    pixels = [group if classes else name for name, group in (*things, *sorted(stuff))]
    classes = classes or tuple(name for name in pixels if name != "-")
    numbered = enumerate(pixels, start=layout.get("first", 0))
    return classes, _table(
        {value: classes.index(name) for value, name in numbered if name != "-"}, layout.get("void", ())
    )


def _split_names(names: str) -> list[str]:
    return names.split(", ") if names else []


def _imagenet_s_classes(images: Path) -> Classes:
    """Return `other` and the folders of the classes; number 255 is skipped, because it is void here."""
    classes = ["other", *(path.name for path in subfolders(images))]
    numbers = {value: value + (value >= IGNORE) for value in range(len(classes))}
    if len(classes) > IGNORE:
        classes.insert(IGNORE, "(void)")
    return tuple(classes), _table(numbers, published_layouts()["imagenet_s"]["void"])


def _table(classes: Mapping[int, int], void: Sequence[int] = ()) -> np.ndarray:
    """Return the values of classes and void as `SegmentationSet.table`; 255 is void unless it is a class."""
    table = np.full(max([IGNORE, *classes, *void]) + 1, UNKNOWN, np.int64)
    table[[IGNORE, *void]] = IGNORE
    table[list(classes)] = list(classes.values())
    return table


def _voc_year(root: Path) -> Path:
    """Return the folder of the latest year that VOCdevkit has, at or below `root`."""
    above = [folder for folder in (root / "VOCdevkit", root) if folder.is_dir()]
    years = [path for folder in above for path in subfolders(folder) if path.name.startswith("VOC2")]
    return next(
        (year for year in (root, root / "VOC2012", *reversed(years)) if (year / "ImageSets" / "Segmentation").is_dir()),
        root,
    )


def _folder(root: Path, *choices: str, split: str = "") -> Path:
    """Return the first folder that exists; `{split}` in a choice stands for the folder name of the split."""
    folders = [choice.replace("{split}", split) for choice in choices]
    for folder in folders:
        if (root / folder).is_dir():
            return root / folder
    raise ValueError(f"{root} has no folder {' or '.join(folders)}; check the split, or complete the download")


def _paired(
    classes: Classes,
    images: Path,
    labels: Path,
    listed: Path | None = None,
    endings: Sequence[str] = ("", ".png"),
) -> SegmentationSet:
    """Pair the images below a folder, or those in a list, with the label files of the same paths below another."""
    files: dict[str, Path] = {}
    for path in files_below(images, IMAGE_SUFFIXES):
        other = files.setdefault(path.relative_to(images).with_suffix("").as_posix(), path)
        if other != path:
            raise ValueError(f"{other} and {path.name} have one name, so that their labels cannot be told; rename one")
    suffix = endings[1][endings[1].rindex(".") :]
    label_of = {name: name.removesuffix(endings[0]) + endings[1] for name in _listed(listed, images, files)}
    existing = {path.relative_to(labels).as_posix() for path in files_below(labels, (suffix,))}
    for name, label in label_of.items():
        if label not in existing:
            raise ValueError(f"{files[name]} has no labels {labels / label}; each image needs them")
    chosen = [files[name] for name in label_of]
    return SegmentationSet(
        classes[0], list(label_of), chosen, [labels / label for label in label_of.values()], classes[1]
    )


def _listed(path: Path | None, images: Path, files: Mapping[str, Path]) -> list[str]:
    """Return the names in a list, or all names without a list.

    A line is the name of a file, with or without its suffix, or a pair as in DeepLab's list of VOC:
    `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.
    """
    if path is None:
        return list(files)
    if not path.is_file():
        splits = ", ".join(stems_in(path.parent, ".txt")) or "none"
        raise ValueError(f"there is no list of images {path}; use one of the splits: {splits}")
    names = []
    for number, line in numbered_lines(path):
        pair = re.fullmatch(r"/?JPEGImages/(\S+)\.jpg\s+\S+\.png", line)
        name = line.removeprefix("./") if pair is None else pair[1]
        known = next((n for n in (name, name.removesuffix(Path(name).suffix)) if n in files), None)
        if known is None:
            raise ValueError(
                f"line {number} of {path} is {line!r}, and {images} has no image of this name; write one name per "
                "line, without a header, or complete the download"
            )
        names.append(known)
    return names


def _open_folder(root: Path, split: str) -> SegmentationSet:
    classes, listed = _read_classes(root), root / f"{split}.txt"
    images, labels = _folder(root, "images"), _folder(root, "labels")
    if (images / split).is_dir():
        return _paired(classes, images / split, _folder(labels, split))
    if listed.is_file():
        return _paired(classes, images, labels, listed)
    splits = [path.name for path in subfolders(images)]
    splits = splits or [name for name in ("train", "val", "test") if (root / f"{name}.txt").is_file()]
    if splits:
        raise ValueError(f"{root} has no split {split!r}; use one of: {', '.join(splits)}")
    return _paired(classes, images, labels)


def _read_classes(root: Path) -> Classes:
    """Read classes.txt or class_names.txt."""
    path = next((p for p in (root / "classes.txt", root / "class_names.txt") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{root} has no classes.txt; {FORM}")
    found = read_class_file(path)
    return tuple(found.classes.values()), _table({value: n for n, value in enumerate(found.classes)}, found.void)
