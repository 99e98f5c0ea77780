"""What lies where in a COCO data set: `annotations/instances_SPLIT.json` and the folder SPLIT of images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfpatch.data.reading import read_image
from selfpatch.evaluation.detect.masks import Polygons, Rle

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; the image's right side is its width: no pixel is added or taken off."""

NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox", "segmentation"),
}
"""What is read of each entry of an annotation file."""


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        label: of its category, 1 to the number of categories, whatever gaps the ids have; 0 is the background.
        box: as annotated.
        segmentation: as annotated.
        crowd: a region of several objects. It is no object to learn; scoring ignores what is detected in it.
    """

    label: int
    box: Box
    segmentation: Polygons | Rle
    crowd: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """An image's id, file and size, and the objects in it."""

    id: int
    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...]

    def read(self) -> Image.Image:
        """RGB.

        Raises:
            ValueError: it cannot be read, or has another size than the annotations say.
        """
        image = read_image(self.path)
        if image.size != (self.width, self.height):
            raise ValueError(
                f"{self.path} has {image.width} x {image.height} pixels, but its annotations are for "
                f"{self.width} x {self.height}; give the images that were annotated"
            )
        return image

    def objects(self) -> tuple[Instance, ...]:
        """What can be learned: no crowds, no boxes without area."""
        return tuple(i for i in self.instances if not i.crowd and i.box[2] > i.box[0] and i.box[3] > i.box[1])


@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        annotations: the file.
        images: in the file's order, those without any object included.
        category_ids: ascending; the category of label n is the n-th.
        category_names: in the same order.
    """

    annotations: Path
    images: tuple[AnnotatedImage, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]

    def first(self, count: int | None) -> Split:
        """With the first so many images; None: all.

        Raises:
            ValueError: that leaves none.
        """
        if count is not None and count < 1:
            raise ValueError(f"limit is {count}; use 1 or more images")
        return replace(self, images=self.images[:count])

    def with_objects(self) -> Split:
        """Without the images that hold nothing to learn.

        Raises:
            ValueError: no image holds anything.
        """
        images = tuple(image for image in self.images if image.objects())
        if not images:
            raise ValueError(f"{self.annotations} annotates no object in the images used; there is nothing to learn")
        return replace(self, images=images)


def open_split(root: str | Path, split: str) -> Split:
    """Reads the annotations of one split, and sees to it that the images are there.

    Raises:
        ValueError: the file or images are missing, it is no instance annotation file, it holds no annotation, or an
            annotation names an image or a category that it does not list.
    """
    root = Path(root).expanduser()
    path = root / "annotations" / f"instances_{split}.json"
    content = _read(path)
    if not content["annotations"]:
        raise ValueError(f"{path} holds no annotation; detection needs boxes and masks")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    instances: dict[int, list[Instance]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        _check(annotation, instances, labels, path)
        instances[annotation["image_id"]].append(_instance(annotation, labels))
    images = tuple(_image(image, root / split, instances) for image in content["images"])
    _check_files(image.path for image in images)
    return Split(path, images, tuple(labels), tuple(str(category["name"]) for category in categories))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"no file {path}; a COCO data set has annotations/instances_SPLIT.json and a folder SPLIT of images"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); fetch it again") from None
    missing = [name for name in NEEDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}; an instance annotation file has {', '.join(NEEDED)}")
    for kind, fields in NEEDED.items():
        lacking = [field for entry in content[kind] for field in fields if field not in entry]
        if lacking:
            raise ValueError(f"one of the {kind} of {path} has no {lacking[0]!r}; each needs {', '.join(fields)}")
    return content


def _check(annotation: Mapping[str, Any], images: Mapping[int, Any], categories: Mapping[int, Any], path: Path) -> None:
    name = annotation.get("id", "without id")
    for field, known in (("image_id", images), ("category_id", categories)):
        if annotation[field] not in known:
            raise ValueError(f"annotation {name} of {path} is for {field} {annotation[field]}, which is not listed")


def _instance(annotation: Mapping[str, Any], labels: Mapping[int, int]) -> Instance:
    left, top, width, height = annotation["bbox"]
    segmentation: Any = annotation["segmentation"]
    if not isinstance(segmentation, dict):  # an outline of fewer than 3 points encloses nothing
        segmentation = tuple(np.array(o, np.float64).reshape(-1, 2) for o in segmentation if len(o) >= 6)
    return Instance(
        label=labels[annotation["category_id"]],
        box=(left, top, left + width, top + height),
        segmentation=segmentation,
        crowd=bool(annotation.get("iscrowd", 0)),
    )


def _image(image: Mapping[str, Any], folder: Path, instances: Mapping[int, Sequence[Instance]]) -> AnnotatedImage:
    found = tuple(instances[image["id"]])
    return AnnotatedImage(image["id"], folder / image["file_name"], image["width"], image["height"], found)


def _check_files(paths: Iterable[Path]) -> None:
    """One listing of each folder, for a look at each of a hundred thousand files takes minutes over a network."""
    there: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in there:
            there[path.parent] = _names(path.parent)
        if path.name not in there[path.parent]:
            missing.append(path)
    if missing:
        raise ValueError(f"{len(missing)} of the annotated images are missing, e.g. {missing[0]}; fetch them again")


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        raise ValueError(
            f"no folder {folder}; a COCO data set keeps the images of a split in a folder of its name"
        ) from None
