"""Folders and files of revisited Oxford and Paris (Radenovic et al., arXiv 1803.11285).

::

    jpg/<name>.jpg       images of the database and of the queries
    <any name>.json      the content of gnd_roxford5k.pkl or gnd_rparis6k.pkl:
        imlist           names of the database
        qimlist          names of the queries
        gnd              for each query: bbx (left, top, right, bottom), and the numbers in imlist of its images that
                         are easy, hard or junk

Nothing is unpickled, because a pickle can run any code.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from selfpatch.config.json_schema import FourCoordinates, Id, LongList, check_json
from selfpatch.core.folders import stems_in
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import counted
from selfpatch.core.text_files import read_json
from selfpatch.data.images import evenly_spread

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
SUFFIXES = (".jpg", ".jpeg", ".png")


class _Truth(TypedDict):
    bbx: NotRequired[FourCoordinates | None]
    easy: list[Id]
    hard: list[Id]
    junk: list[Id]


class _GroundTruth(TypedDict):
    imlist: LongList[str]
    qimlist: LongList[str]
    gnd: LongList[_Truth]


@dataclass(frozen=True)
class Query:
    """One query and its images in the database."""

    name: str
    image: Path
    box: Box | None
    """Box of the object (left, top, right, bottom), in pixels; None if the file gives none."""
    easy: np.ndarray  # int64, numbers in the database
    hard: np.ndarray
    junk: np.ndarray


@dataclass(frozen=True)
class RetrievalSet:
    """Database and queries."""

    database: list[Path]
    queries: list[Query]

    def limited(self, num_images: int | None) -> "RetrievalSet":
        """Return at most `num_images` of the database, evenly spread, and what is left of each query's images."""
        if num_images is None:
            return self
        kept = evenly_spread(np.arange(len(self.database)), num_images)
        new = np.full(len(self.database), -1)
        new[kept] = np.arange(len(kept))

        def left(numbers: np.ndarray) -> np.ndarray:
            found = new[numbers]
            return found[found >= 0]

        queries = [replace(q, easy=left(q.easy), hard=left(q.hard), junk=left(q.junk)) for q in self.queries]
        return RetrievalSet([self.database[i] for i in kept], queries)


def open_retrieval(data: str | Path) -> RetrievalSet:
    """Read the JSON file of a folder, and check that all of its images exist.

    Raises:
        ValueError: there is not one JSON file, it is invalid, or an image is missing.
    """
    root = Path(data).expanduser()
    files = [root / f"{stem}.json" for stem in stems_in(root, ".json")]
    if len(files) != 1:
        raise ValueError(
            f"{root} has {len(files)} JSON files, but revisited Oxford and Paris have one, made from gnd_*.pkl; give "
            "the folder that holds it and jpg/"
        )
    try:
        values = check_json(read_json(files[0]), _GroundTruth, str(files[0]))
        names, query_names, truths = (values[key] for key in ("imlist", "qimlist", "gnd"))
        boxes = [_box(truth.get("bbx")) for truth in truths]
    except ValueError as error:
        raise ValueError(
            f"{files[0]} cannot be read as imlist, qimlist and gnd; convert gnd_*.pkl again ({error})"
        ) from None
    kinds = [[np.array(truth[kind], np.int64) for kind in ("easy", "hard", "junk")] for truth in truths]
    if not names or not query_names or len(query_names) != len(truths):
        raise ValueError(
            f"{files[0]} has {counted(len(names), 'image')}, {counted(len(query_names), 'query')} and "
            f"{counted(len(truths), 'entry')} in gnd; it needs one image and one query at least, and an entry per query"
        )
    for name, numbers in zip(query_names, kinds, strict=True):
        _check_numbers(files[0], str(name), np.concatenate(numbers), len(names))
    images = [_image(root, name, files[0]) for name in query_names]
    queries = [
        Query(str(name), image, box, *numbers)
        for name, image, box, numbers in zip(query_names, images, boxes, kinds, strict=True)
    ]
    return RetrievalSet([_image(root, name, files[0]) for name in names], queries)


def _box(sides: list[float] | None) -> Box | None:
    if sides is None:
        return None
    left, top, right, bottom = map(float, sides)
    if not (round(right) > round(left) and round(bottom) > round(top)):
        raise ValueError(f"the box {sides} of a query is empty")
    return left, top, right, bottom


def _check_numbers(file: Path, name: str, numbers: np.ndarray, count: int) -> None:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < count):
        raise ValueError(f"{file} gives {name} an image outside of 0 to {count - 1}, the numbers of its imlist")
    if len(np.unique(numbers)) < len(numbers):
        raise ValueError(f"{file} gives {name} an image twice; it is either easy, hard or junk")


def _image(root: Path, name: Any, named_by: Path) -> Path:
    """Return the file of a name, with or without its suffix, in jpg/ or in the folder itself."""
    for folder in (root / "jpg", root):
        path = path_below(folder, name, named_by)
        for suffix in ("", *SUFFIXES):
            if (file := path.with_name(path.name + suffix)).is_file():
                return file
    raise ValueError(f"there is no image {root / 'jpg' / name}.jpg, which {named_by} names; check the download")
