"""Reading of instance annotation files: every entry is checked, and optional fields are filled in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox", "segmentation"),
}
"""Required fields of the entries of each list of an annotation file."""


def read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the images, categories and annotations of an instance annotation file.

    Annotations have a uniform format. `id` is the position counted from 1 (pycocotools treats an object with id 0 as
    not found). `iscrowd` is 0 or 1. `area` is a number, or None if the file has none. `segmentation` is a list of
    polygons of 3 or more points, or run lengths; it is an empty list if the object has a box only.

    Raises:
        ValueError: the file is missing or not an instance annotation file, holds no annotation, or has an invalid
            entry.
    """
    content = _read(path)
    if not content["annotations"]:
        raise ValueError(f"{path} holds no annotation; detection needs boxes and masks")
    sizes: dict[Any, tuple[int, int]] = {}
    for image in content["images"]:
        if image["id"] in sizes:
            raise ValueError(f"two images of {path} have the id {image['id']}; each needs its own")
        sizes[image["id"]] = (image["height"], image["width"])
    categories = {category["id"] for category in content["categories"]}
    annotations = []
    for position, annotation in enumerate(content["annotations"], start=1):
        name = f"annotation {annotation.get('id', f'number {position}')} of {path}"
        for field, known in (("image_id", sizes), ("category_id", categories)):
            if annotation[field] not in known:
                raise ValueError(f"{name} is for {field} {annotation[field]}, which is not listed; add it")
        annotations.append({**_checked(annotation, sizes[annotation["image_id"]], name), "id": position})
    return {"images": content["images"], "categories": content["categories"], "annotations": annotations}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"no file {path}; a COCO data set has annotations/instances_SPLIT.json and a folder SPLIT of images"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    missing = [name for name in NEEDED if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}; an instance annotation file has lists of {', '.join(NEEDED)}")
    for kind, fields in NEEDED.items():
        for position, entry in enumerate(content[kind], start=1):
            lacking = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if lacking:
                number = entry.get("id", f"number {position}") if isinstance(entry, dict) else f"number {position}"
                raise ValueError(
                    f"one of the {kind} of {path} has no {lacking[0]!r} ({number}); each needs {', '.join(fields)}"
                )
    return content


def _checked(annotation: Mapping[str, Any], size: tuple[int, int], name: str) -> dict[str, Any]:
    box, area = annotation["bbox"], annotation.get("area")
    if not _numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        raise ValueError(f"{name} has the bbox {box}; give [left, top, width, height] in pixels")
    if area is not None and not _numbers([area]):
        raise ValueError(f"{name} has the area {area!r}; give a number of pixels, or leave it out")
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": area,
        "iscrowd": int(bool(annotation.get("iscrowd"))),
        "segmentation": _segmentation(annotation["segmentation"], size, name),
    }


def _segmentation(value: Any, size: tuple[int, int], name: str) -> list[list[float]] | dict[str, Any]:
    if isinstance(value, dict):
        counts: Any = value.get("counts")
        if value.get("size") != list(size) or not (isinstance(counts, str) or _numbers(counts)):
            raise ValueError(
                f"{name} has run lengths of size {value.get('size')}; give counts, and its image's size, {list(size)}"
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
    return isinstance(values, Sequence) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )
