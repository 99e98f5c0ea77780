"""Images and boxes in the layouts of Pascal VOC and COCO.

::

    Annotations/<name>.xml   ImageSets/Main/<split>.txt   JPEGImages/<name>.jpg        perhaps in VOCdevkit/VOC2007/
    annotations/instances_<split>.json   <split>/<file>   or images/<split>/<file>
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from selfpatch.config.json_schema import MAX_COORDINATE
from selfpatch.core.folders import stems_in, subfolders
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import counted
from selfpatch.core.text_files import numbered_lines, read_bytes
from selfpatch.evaluation.coco import read_boxes
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.result import Progress, silent

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels from the image's corner; the whole image is (0, 0, width, height)."""


@dataclass(frozen=True)
class LabelledImage:
    """One image and the boxes of all its objects, whatever their classes."""

    name: str
    path: Path
    boxes: tuple[Box, ...]
    coco_id: str | None = None
    """Number of the image in COCO, in decimal digits without leading zeros."""


def open_images(data: str | Path, config: ObjectDiscoveryConfig, progress: Progress = silent) -> list[LabelledImage]:
    """Return the images of a folder in the layout of VOC or COCO, including those without a box.

    Folders and endings of the names in `config.image_list` are ignored. An image of COCO may be named by its id alone.

    Raises:
        ValueError: the folder has neither layout, or a file of it is missing or cannot be read.
    """
    root = Path(data).expanduser()
    stems = [stem for stem in stems_in(root / "annotations", ".json") if stem.startswith("instances_")]
    tables = [root / "annotations" / f"{stem}.json" for stem in stems]
    voc = _voc_root(root)
    if voc is not None:
        images = list(_voc_images(voc, config.split or "trainval", config.hard, progress))
    elif tables:
        progress("annotations", 0, 1)  # one file, which is read at once
        images = list(_coco_images(root, tables, config.split))
    else:
        raise ValueError(
            f"{root} is neither VOC nor COCO: it has neither Annotations/ with JPEGImages/ nor "
            "annotations/instances_*.json; give the folder that holds them"
        )
    if config.image_list is not None:
        images = _listed(images, Path(config.image_list).expanduser())
    if not images:
        raise ValueError(f"split {config.split or 'trainval'!r} of {root} names no image; choose another split")
    for image in images:
        if not image.path.is_file():
            raise ValueError(f"there is no image {image.path}, which the data set lists; add it or check the download")
    return images


def _voc_root(root: Path) -> Path | None:
    """Return the folder of one year, at `root` or below it, or None if there is none."""
    above = [folder for folder in (root, root / "VOCdevkit") if folder.is_dir()]
    years = [path for folder in above for path in subfolders(folder) if path.name.startswith("VOC2")]
    found = [f for f in (root, *years) if (f / "Annotations").is_dir() and (f / "JPEGImages").is_dir()]
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(f.name for f in found)}; give the folder of one of them")
    return found[0] if found else None


def _voc_images(root: Path, split: str, hard: bool, progress: Progress) -> Iterator[LabelledImage]:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(stems_in(path.parent, ".txt")) or "none"
        raise ValueError(f"there is no {path}; the splits of {root} are: {known}")
    listed: set[str] = set()
    lines = list(numbered_lines(path))
    for done, (number, line) in enumerate(lines, start=1):
        progress("annotations", done, len(lines))
        where = f"line {number} of {path}"
        name, annotations = line, path_below(root / "Annotations", f"{line}.xml", where)
        # The lists of one class have a flag behind the name: 1, 0 or -1.
        if not annotations.is_file() and (flagged := re.fullmatch(r"(.*\S)\s+(?:-1|0|1)", line)) is not None:
            name, annotations = flagged[1], path_below(root / "Annotations", f"{flagged[1]}.xml", where)
        if name not in listed:
            listed.add(name)
            image = path_below(root / "JPEGImages", f"{name}.jpg", where)
            yield LabelledImage(name, image, tuple(_voc_boxes(annotations, hard, where)))


def _voc_boxes(path: Path, hard: bool, named_by: str) -> Iterator[Box]:
    """Yield the boxes of an annotation file; VOC counts pixels from 1 and includes the last, so left and top move."""
    content = read_bytes(path, f"{named_by} names it, and every image of the split needs its boxes")
    try:
        for thing in ElementTree.fromstring(content).findall("object"):
            if hard or not any(thing.findtext(mark) == "1" for mark in ("difficult", "truncated")):
                # Some files of VOC2012 have fractions, which are truncated as LOST does.
                sides = [thing.findtext(f"bndbox/{side}") or "" for side in ("xmin", "ymin", "xmax", "ymax")]
                left, top, right, bottom = (int(float(side)) for side in sides)
                if not (left <= right <= MAX_COORDINATE and top <= bottom <= MAX_COORDINATE and min(left, top) >= 0):
                    raise ValueError("a box that ends before it begins, or is outside of every image")
                yield left - 1, top - 1, right, bottom
    except (ElementTree.ParseError, ValueError, OverflowError, LookupError):  # also sides and encodings unheard of
        raise ValueError(f"{path} cannot be read as VOC's boxes; download it again") from None


def _coco_images(root: Path, tables: list[Path], split: str | None) -> Iterator[LabelledImage]:
    names = [path.stem.removeprefix("instances_") for path in tables]
    chosen = split or ("train2014" if "train2014" in names else names[0])
    if chosen not in names or (split is None and chosen != "train2014" and len(names) > 1):
        raise ValueError(f"split is {split!r}, and {root} has: {', '.join(names)}; name one of them")
    path = tables[names.index(chosen)]
    table = read_boxes(path)
    boxes: defaultdict[int, list[Box]] = defaultdict(list)
    for row in table["annotations"]:
        if not row["iscrowd"]:
            left, top, width, height = row["bbox"]
            corners = round(left), round(top), round(left + width), round(top + height)  # as LOST does
            boxes[row["image_id"]].append(corners)
    folders = [folder for folder in (root / chosen, root / "images" / chosen, root / "images") if folder.is_dir()]
    if not folders:
        raise ValueError(f"{root} has no folder {chosen}/ or images/{chosen}/ with the images of {path.name}; add it")
    numbers = [image["id"] for image in table["images"]]
    files = [path_below(folders[0], image["file_name"], f"image {image['id']} of {path}") for image in table["images"]]
    for number, file, name in zip(numbers, files, _distinct_names(files, folders[0]), strict=True):
        yield LabelledImage(name, file, tuple(boxes[number]), str(number))


def _distinct_names(files: list[Path], folder: Path) -> list[str]:
    """Return the path of each file below the folder, without its ending unless this tells files apart."""
    paths = [file.relative_to(folder) for file in files]
    names = [path.with_suffix("").as_posix() for path in paths]
    return names if len({*names}) == len(names) else [path.as_posix() for path in paths]


def _listed(images: list[LabelledImage], path: Path) -> list[LabelledImage]:
    """Return the images that a file names, in its order."""
    if not path.is_file():
        raise ValueError(f"there is no list of images {path}; give a text file with one name per line")
    by_stem = {PurePosixPath(image.name).stem: image for image in images}
    by_name = by_stem if len(by_stem) == len(images) else {}  # a stem of two images names neither
    by_name |= {image.name: image for image in images}
    by_name |= {image.coco_id: image for image in images if image.coco_id is not None}
    chosen, unknown = {}, []
    for number, line in numbered_lines(path):
        given = PurePosixPath(line)
        ends = ["/".join(given.parts[first:]) for first in range(len(given.parts))]
        names = [*ends, *(end.removesuffix(given.suffix) for end in ends), given.stem.lstrip("0")]
        known = next((by_name[name] for name in names if name in by_name), None)
        if known is None:
            unknown.append(f"line {number} is {line!r}")
        else:
            chosen[known.name] = known
    if unknown:
        have = f"{counted(len(unknown), 'image')} that the data set does not have, e.g. {unknown[0]}"
        raise ValueError(f"{path} names {have}; use the list of this split, without a header")
    if not chosen:
        raise ValueError(f"{path} is empty; it should name one image per line")
    return list(chosen.values())
