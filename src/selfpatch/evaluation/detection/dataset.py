"""Splits of a COCO data set: `annotations/instances_SPLIT.json`, each entry checked, and the folder SPLIT of images."""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfpatch.data.decode.pillow import read_image
from selfpatch.evaluation.detection.masks import Polygons, Rle

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; the right side of the whole image is its width, without any offset."""
NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox", "segmentation"),
}
"""Required fields of the entries of each list of an annotation file."""


@dataclass(frozen=True)
class Instance:
    """One annotated object."""

    label: int
    """Label of its category, 1 to the number of categories without gaps; 0 is the background."""
    box: Box
    segmentation: Polygons | Rle
    """Segmentation as annotated; without a polygon, the object has a box only."""
    crowd: bool
    """True if it is a region of several objects, which is not trained on; detections in it are ignored."""


@dataclass(frozen=True)
class AnnotatedImage:
    """Id, file name as annotated, path, size and objects of an image."""

    id: int
    name: str
    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...]

    def read(self) -> Image.Image:
        """Return the image in RGB.

        Raises:
            ValueError: the image cannot be read, or has another size than annotated.
        """
        image = read_image(self.path)
        if image.size != (self.width, self.height):
            raise ValueError(
                f"{self.path} has {image.width} x {image.height} pixels, but its annotations are for "
                f"{self.width} x {self.height}; use the annotated images"
            )
        return image

    def objects(self) -> tuple[Instance, ...]:
        """Return the objects to train on: no crowds, and no boxes without area."""
        return tuple(i for i in self.instances if not i.crowd and i.box[2] > i.box[0] and i.box[3] > i.box[1])


@dataclass(frozen=True)
class Split:
    """Split of a data set: its images in the order of the annotation file, including those without objects."""

    annotations: Path
    images: tuple[AnnotatedImage, ...]
    category_ids: tuple[int, ...]
    """Ids of the categories in ascending order; label n is the n-th."""
    category_names: tuple[str, ...]

    def first(self, count: int | None) -> "Split":
        """Return the split with its first `count` images, or all of them if None."""
        return replace(self, images=self.images[:count])

    def with_objects(self) -> "Split":
        """Return the split without the images that have no object to train on.

        Raises:
            ValueError: no image has an object.
        """
        images = tuple(image for image in self.images if image.objects())
        if not images:
            raise ValueError(f"{self.annotations} annotates no object in the images used; there is nothing to train on")
        return replace(self, images=images)

    def fingerprint(self) -> str:
        """Return a hash of the category ids and of the name, size and objects of each image.

        It depends neither on the folder of the data set nor on the pixels.
        """
        digest = hashlib.sha256(json.dumps(self.category_ids).encode())
        for image in self.images:
            digest.update(json.dumps([image.name, image.width, image.height, len(image.instances)]).encode())
            for one in image.instances:
                values = [one.label, one.box, one.crowd, one.segmentation]
                digest.update(json.dumps(values, default=np.ndarray.tolist).encode())
        return digest.hexdigest()


def open_split(root: str | Path, split: str) -> Split:
    """Read the annotations of one split, and check that its images exist.

    Raises:
        ValueError: images or the file are missing, or the file cannot be used (`read_annotations`).
    """
    root = Path(root).expanduser()
    path = root / "annotations" / f"instances_{split}.json"
    content = read_annotations(path)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    instances: defaultdict[int, list[Instance]] = defaultdict(list)
    for row in content["annotations"]:
        left, top, width, height = row["bbox"]
        segmentation: Any = row["segmentation"]
        if not isinstance(segmentation, dict):
            segmentation = tuple(np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation)
        box = (left, top, left + width, top + height)
        one = Instance(labels[row["category_id"]], box, segmentation, bool(row["iscrowd"]))
        instances[row["image_id"]].append(one)
    images = []
    for entry in content["images"]:
        name, objects = entry["file_name"], tuple(instances[entry["id"]])
        image_path = root / split / name
        images.append(AnnotatedImage(entry["id"], name, image_path, entry["width"], entry["height"], objects))
    # Listing each folder once: over a network, checking each of a hundred thousand files would take minutes.
    listed = cache(_names)
    missing = [image.path for image in images if image.path.name not in listed(image.path.parent)]
    if missing:
        raise ValueError(f"{len(missing)} of the annotated images are missing, e.g. {missing[0]}; download them again")
    return Split(path, tuple(images), tuple(labels), tuple(str(category["name"]) for category in categories))


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        advice = "a COCO data set keeps the images of a split in a folder of the same name"
        raise ValueError(f"no folder {folder}; {advice}") from None


def read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the images, categories and annotations of an instance annotation file.

    Annotations have a uniform format. `id` is the position counted from 1 (pycocotools treats an object with id 0 as
    not found). `iscrowd` is 0 or 1. `area` is a number, or None if the file has none. `segmentation` is a list of
    polygons of 3 or more points, or run lengths; it is an empty list if the object has a box only.

    Raises:
        ValueError: the file is missing, holds no instance annotation, or has an invalid entry.
    """
    content = _read(path)
    if not content["annotations"]:
        raise ValueError(f"{path} holds no annotation; detection needs boxes and masks")
    sizes: dict[Any, list[int]] = {}
    for image in content["images"]:
        if image["id"] in sizes:
            raise ValueError(f"two images of {path} have the id {image['id']}; each needs its own")
        sizes[image["id"]] = [image["height"], image["width"]]
    known = {"image_id": sizes.keys(), "category_id": {category["id"] for category in content["categories"]}}
    rows = []
    for number, row in enumerate(content["annotations"], start=1):
        name = f"annotation {row.get('id', f'number {number}')} of {path}"
        for field, ids in known.items():
            if row[field] not in ids:
                raise ValueError(f"{name} is for {field} {row[field]}, which is not listed; add it")
        box, area = row["bbox"], row.get("area")
        if not _numbers(box) or len(box) != 4 or min(box[2:]) < 0:
            raise ValueError(f"{name} has the bbox {box}; give [left, top, width, height] in pixels")
        if area is not None and not _numbers([area]):
            raise ValueError(f"{name} has the area {area!r}; give a number of pixels, or leave it out")
        segmentation = _segmentation(row["segmentation"], sizes[row["image_id"]], name)
        rows.append({
            "id": number, "image_id": row["image_id"], "category_id": row["category_id"], "bbox": box, "area": area,
            "iscrowd": int(bool(row.get("iscrowd"))), "segmentation": segmentation,
        })  # fmt: skip
    return {"images": content["images"], "categories": content["categories"], "annotations": rows}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        advice = "a COCO data set has annotations/instances_SPLIT.json and a folder SPLIT of images"
        raise ValueError(f"no file {path}; {advice}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    missing = [name for name in NEEDED if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}; an instance annotation file has lists of {', '.join(NEEDED)}")
    for kind, fields in NEEDED.items():
        for number, entry in enumerate(content[kind], start=1):
            values = entry if isinstance(entry, dict) else {}
            lacking = [field for field in fields if field not in values]
            if lacking:
                name = values.get("id", f"number {number}")
                raise ValueError(
                    f"one of the {kind} of {path} has no {lacking[0]!r} ({name}); each needs {', '.join(fields)}"
                )
    return content


def _segmentation(value: Any, size: list[int], name: str) -> list[list[float]] | dict[str, Any]:
    if isinstance(value, dict):
        counts: Any = value.get("counts")
        if value.get("size") != size or not (isinstance(counts, str) or _numbers(counts)):
            raise ValueError(
                f"{name} has run lengths of size {value.get('size')}; give counts, and its image's size, {size}"
            )
        if not isinstance(counts, str) and (sum(counts) != size[0] * size[1] or min(counts) < 0):
            raise ValueError(f"{name} has run lengths of {sum(counts)} pixels; its image has {size[0] * size[1]}")
        return value
    polygons = [] if value is None else value
    if not isinstance(polygons, list) or not all(_numbers(p) and len(p) % 2 == 0 for p in polygons):
        raise ValueError(
            f"{name} has a segmentation that is neither polygons [[x, y, x, y, ...], ...] nor run lengths; give one of "
            "them, or [] if there is no mask"
        )
    return [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than 3 points enclose nothing


def _numbers(values: Any) -> bool:
    """Return whether the value is a sequence of finite numbers."""
    return isinstance(values, Sequence) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
