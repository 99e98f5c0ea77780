"""What lies where in a COCO data set: `annotations/instances_SPLIT.json` and the folder SPLIT of images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfpatch.data.decode.pillow import read_image
from selfpatch.evaluation.detection.annotations import read_annotations
from selfpatch.evaluation.detection.masks import Polygons, Rle

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; the image's right side is its width: no pixel is added or taken off."""


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        label: of its category, 1 to the number of categories, whatever gaps the ids have; 0 is the background.
        box: as annotated.
        segmentation: as annotated; no outline: it has a box only.
        crowd: a region of several objects. It is no object to learn; scoring ignores what is detected in it.
    """

    label: int
    box: Box
    segmentation: Polygons | Rle
    crowd: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """An image's id, file name as annotated, file and size, and the objects in it."""

    id: int
    name: str
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

    def fingerprint(self) -> str:
        """A hash of what is learned from: the categories' ids, and name, size and objects of each image, wherever the
        data set lies. The pixels are not looked at."""
        digest = hashlib.sha256(json.dumps(self.category_ids).encode())
        for image in self.images:
            digest.update(json.dumps([image.name, image.width, image.height, len(image.instances)]).encode())
            for one in image.instances:
                digest.update(json.dumps([one.label, one.box, one.crowd, _plain(one.segmentation)]).encode())
        return digest.hexdigest()


def _plain(segmentation: Polygons | Rle) -> Any:
    return segmentation if isinstance(segmentation, dict) else [outline.tolist() for outline in segmentation]


def open_split(root: str | Path, split: str) -> Split:
    """Reads the annotations of one split, and sees to it that the images are there.

    Raises:
        ValueError: images are missing, or the file is, or cannot be used (`annotations.read_annotations`).
    """
    root = Path(root).expanduser()
    path = root / "annotations" / f"instances_{split}.json"
    content = read_annotations(path)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    instances: dict[int, list[Instance]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        instances[annotation["image_id"]].append(_instance(annotation, labels))
    images = tuple(_image(image, root / split, instances) for image in content["images"])
    _check_files(image.path for image in images)
    return Split(path, images, tuple(labels), tuple(str(category["name"]) for category in categories))


def _instance(annotation: Mapping[str, Any], labels: Mapping[int, int]) -> Instance:
    left, top, width, height = annotation["bbox"]
    segmentation: Any = annotation["segmentation"]
    if not isinstance(segmentation, dict):
        segmentation = tuple(np.array(outline, np.float64).reshape(-1, 2) for outline in segmentation)
    return Instance(
        label=labels[annotation["category_id"]],
        box=(left, top, left + width, top + height),
        segmentation=segmentation,
        crowd=bool(annotation["iscrowd"]),
    )


def _image(image: Mapping[str, Any], folder: Path, instances: Mapping[int, Sequence[Instance]]) -> AnnotatedImage:
    found = tuple(instances[image["id"]])
    name = image["file_name"]
    return AnnotatedImage(image["id"], name, folder / name, image["width"], image["height"], found)


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
