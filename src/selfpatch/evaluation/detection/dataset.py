"""Splits of a COCO data set: `annotations/instances_SPLIT.json`, each entry checked, and the folder SPLIT of images."""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfpatch.core.folders import visible_entries
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import counted
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.coco import read_instances
from selfpatch.evaluation.detection.masks import Polygons, Rle

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; the right side of the whole image is its width, without any offset."""
LAYOUT = "a COCO data set has annotations/instances_SPLIT.json and a folder SPLIT of images"


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
        """Return a hash of the category ids and of the name, size, objects and length of the file of each image.

        It depends neither on the folder of the data set nor on the pixels.
        """
        digest = hashlib.sha256(json.dumps(self.category_ids).encode())
        files = ImageIndex("/", [os.fsencode(image.path.absolute()) for image in self.images])
        digest.update(files.stamps()[:, 0].astype("<i8").tobytes())
        for image in self.images:
            digest.update(json.dumps([image.name, image.width, image.height, len(image.instances)]).encode())
            for one in image.instances:
                values = [one.label, one.box, one.crowd, one.segmentation]
                digest.update(json.dumps(values, default=np.ndarray.tolist).encode())
        return digest.hexdigest()


def open_split(root: str | Path, split: str) -> Split:
    """Read the annotations of one split, and check that its images exist.

    Raises:
        ValueError: images or the file are missing, or the file has no object or cannot be used (`read_instances`).
    """
    root = Path(root).expanduser()
    path = root / "annotations" / f"instances_{split}.json"
    content = read_instances(path, LAYOUT)
    if not content["annotations"]:
        raise ValueError(f"{path} holds no annotation; detection needs boxes and masks")
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
        image_path = path_below(root / split, name, f"image {entry['id']} of {path}")
        images.append(AnnotatedImage(entry["id"], name, image_path, entry["width"], entry["height"], objects))
    # Listing each folder once: over a network, checking each of a hundred thousand files would take minutes.
    listed = cache(_names)
    missing = [image.path for image in images if image.path.name not in listed(image.path.parent)]
    if missing:
        raise ValueError(
            f"{counted(len(missing), 'annotated image')} cannot be found, e.g. {missing[0]}; download them again"
        )
    return Split(path, tuple(images), tuple(labels), tuple(category["name"] for category in categories))


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        advice = "a COCO data set keeps the images of a split in a folder of the same name"
        raise ValueError(f"no folder {folder}; {advice}")
    return {path.name for path in visible_entries(folder)}
