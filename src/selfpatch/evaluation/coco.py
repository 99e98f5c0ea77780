"""Instance annotation files of COCO: every entry is checked once, when the file is read.

Layout: Lin et al., Microsoft COCO (arXiv 1405.0312), https://cocodataset.org/#format-data.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,  # not of typing, which pydantic takes from Python 3.12 on
)

import pydantic
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from selfpatch.config.json_schema import FourCoordinates, Id, Location, LongList, check_json, shown
from selfpatch.core.text_files import read_json

SINGULAR = {"images": "image", "categories": "category", "annotations": "annotation"}
MAX_SIDE = 65_535
"""Largest side of an image in pixels."""
MAX_PIXELS = 2**31 - 1
"""Largest number of pixels of an image; pycocotools counts them in 32 bits."""
MAX_LENGTH = 4_000_000
"""Largest length of a polygon's outline in pixels; pycocotools takes 80 bytes for each."""

Side = Annotated[int, Ge(1), Le(MAX_SIDE)]


class ListedImage(TypedDict):
    """An image of a file that has boxes at least."""

    id: Id
    file_name: str


class Box(TypedDict):
    """An annotation of a file that has boxes at least."""

    id: NotRequired[Id]
    image_id: Id
    bbox: FourCoordinates
    iscrowd: NotRequired[Any]


class Boxes(TypedDict):
    """Content of a file that has boxes at least."""

    images: LongList[ListedImage]
    annotations: LongList[Box]


class SizedImage(ListedImage):
    """An image of a file that has masks."""

    width: Side
    height: Side


class Category(TypedDict):
    """A category."""

    id: Id
    name: str


class Object(Box):
    """An annotation of a file that has masks."""

    category_id: Id
    segmentation: Any
    area: NotRequired[Annotated[pydantic.FiniteFloat, Ge(0)] | None]


class Instances(TypedDict):
    """Content of a file that has masks."""

    images: LongList[SizedImage]
    categories: LongList[Category]
    annotations: LongList[Object]


def read_boxes(path: Path, if_missing: str = "check the name") -> Boxes:
    """Return the images and annotations of a file that has boxes at least; `iscrowd` of each annotation is 0 or 1.

    Raises:
        ValueError: the file cannot be read, a key is missing, a value has the wrong type or is out of range, an id or a
            file is listed twice, or an annotation is for an image that is not listed.
    """
    content: Boxes = _checked(path, Boxes, if_missing)
    return content


def read_instances(path: Path, if_missing: str = "check the name") -> Instances:
    """Return the images, categories and annotations of a file that has masks.

    Annotations have a uniform format. `id` is the position counted from 1 (pycocotools treats an object with id 0 as
    not found). `iscrowd` is 0 or 1. `area` is a number, or None if the file has none. `segmentation` is a list of
    polygons of 3 or more points, or run lengths; it is an empty list if the object has a box only.

    Raises:
        ValueError: as `read_boxes`, or an annotation is for a category that is not listed, or has a segmentation that
            does not fit its image.
    """
    content: Instances = _checked(path, Instances, if_missing)
    _refuse_twice(path, "category", (category["id"] for category in content["categories"]))
    categories = {category["id"] for category in content["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for index, image in enumerate(content["images"]):
        if image["height"] * image["width"] > MAX_PIXELS:
            raise ValueError(f"{_name(content, ('images', index))} of {path} has over {MAX_PIXELS} pixels; correct it")
    for index, row in enumerate(content["annotations"]):
        try:
            if row["category_id"] not in categories:
                raise ValueError(f"is for category_id {row['category_id']}, which is not listed; add it")
            row["segmentation"] = _segmentation(row["segmentation"], *sizes[row["image_id"]])
        except ValueError as error:
            raise ValueError(f"{_name(content, ('annotations', index))} of {path} {error}") from None
        row["id"] = index + 1
        row["area"] = row.get("area")
    return content


def _checked(path: Path, kind: Any, if_missing: str) -> Any:
    raw = read_json(path, if_missing)

    def entry(location: Location) -> tuple[str, Location]:
        return ("", location) if len(location) < 2 else (_name(raw, location), location[2:])

    content = check_json(raw, kind, str(path), entry)
    _refuse_twice(path, "image", (image["id"] for image in content["images"]))
    _refuse_twice(path, "annotation", (row["id"] for row in content["annotations"] if "id" in row))
    _refuse_twice(path, "file_name", (image["file_name"] for image in content["images"]))
    images = {image["id"] for image in content["images"]}
    for index, row in enumerate(content["annotations"]):
        crowd = row.get("iscrowd")
        try:
            if row["image_id"] not in images:
                raise ValueError(f"is for image_id {row['image_id']}, which is not listed; add it")
            if min(row["bbox"][2:]) < 0:
                raise ValueError(f"has the bbox {row['bbox']}; give [left, top, width, height] in pixels")
            if crowd not in (None, 0, 1):
                raise ValueError(f"has the iscrowd {shown(crowd)}; use 0 or 1, or leave it out")
        except ValueError as error:
            raise ValueError(f"{_name(content, ('annotations', index))} of {path} {error}") from None
        row["iscrowd"] = int(crowd or 0)
    return content


def _refuse_twice(path: Path, kind: str, ids: Iterable[Any]) -> None:
    """Raise ValueError if an id, or a file name, is listed twice."""
    seen = set()
    for one in ids:
        if one in seen:
            what = f"{kind} {one!r}" if kind == "file_name" else f"{kind} id {one}"
            raise ValueError(f"{what} is listed twice in {path}; each needs its own")
        seen.add(one)


def _name(content: Any, location: Location) -> str:
    """Return the name of the list entry that a location leads to, with the id and the image that it has."""
    kind, index = str(location[0]), int(location[1])
    row = content[kind][index]
    row = row if isinstance(row, dict) else {}
    name = f"{SINGULAR[kind]} {shown(row['id']) if 'id' in row else f'number {index + 1}'}"
    images = content["images"] if kind == "annotations" else [row] if kind == "images" else []
    wanted = row.get("image_id") if kind == "annotations" else row.get("id")
    files = [image.get("file_name") for image in images if isinstance(image, dict) and image.get("id") == wanted]
    return f"{name} ({shown(files[0])})" if files else name


def _segmentation(value: Any, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """Return the polygons that enclose something, or the run lengths of a mask.

    Raises:
        ValueError: they do not fit an image of this size; the error is the end of a sentence.
    """
    if isinstance(value, dict):
        return _run_lengths(value, height, width)
    polygons = [] if value is None else value
    if not isinstance(polygons, list) or not all(_is_polygon(polygon) for polygon in polygons):
        raise ValueError(
            "has a segmentation that is neither polygons [[x, y, x, y, ...], ...] nor run lengths; give one of them, "
            "or [] if there is no mask"
        )
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than 3 points enclose nothing
    reach = 2 * max(height, width)  # pycocotools walks along the outline, however far it is from the image
    for polygon in polygons:
        if min(polygon) < -reach or max(polygon) > reach or len(polygon) * reach > MAX_LENGTH < _length(polygon):
            raise ValueError(
                f"has a polygon far outside of its image of {width} x {height} pixels, or with an outline of over "
                f"{MAX_LENGTH} pixels; correct it"
            )
    return polygons


def _is_polygon(value: Any) -> bool:
    """Return whether a value is a list of an even number of finite numbers, each an int or a float."""
    if not isinstance(value, list) or len(value) % 2 or not {*map(type, value)} <= {int, float}:
        return False
    try:
        return math.isfinite(sum(value))
    except OverflowError:  # a whole number beyond floats
        return False


def _length(polygon: Sequence[float]) -> float:
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    return sum(map(math.dist, points, points[1:] + points[:1]))


def _run_lengths(value: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        raise ValueError(f"has run lengths of size {shown(size)}; give its image's size, {[height, width]}")
    if isinstance(counts, str):
        lengths = unpacked(counts)
    elif isinstance(counts, list) and {*map(type, counts)} <= {int}:
        lengths = counts
    else:
        raise ValueError(f"has the counts {shown(counts)} of run lengths; give whole numbers, or packed ones as text")
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"has run lengths of {sum(lengths)} pixels; its image has {height * width}")
    return {"size": [height, width], "counts": counts}


def unpacked(counts: str) -> list[int]:
    """Return the run lengths that pycocotools packed into a text.

    Each is a number of base 32, its lowest digit first, in characters from code 48 on; 32 is added to all digits but
    the last, whose bit of 16 is the sign. From the fourth on, numbers are differences to the last but one.

    Raises:
        ValueError: the text is no packed run lengths.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError(f"has the counts {shown(counts)}, which are no packed run lengths; write them again")
        number |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            number -= (1 << shift) if digit & 16 else 0
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError(f"has the counts {shown(counts)}, which end within a number; write them again")
    return lengths
