"""iNaturalist as published: one folder of images, and a JSON file of annotations for each split and year."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.data.sources.index import ImageIndex

FORMAT = "images with `id` and `file_name`, and annotations with `image_id` and `category_id`"


def annotation_files(root: Path) -> tuple[Path, Path] | None:
    """Return `trainYEAR.json` and `valYEAR.json` of the latest year that has both, or None."""
    for train in sorted(root.glob("train20[0-9][0-9].json"), reverse=True):
        test = train.with_name(train.name.replace("train", "val", 1))
        if test.is_file():
            return train, test
    return None


def read_split(file: Path) -> tuple[ImageIndex, list[int], dict[int, str]]:
    """Read the images of one split, sorted by path.

    Returns:
        The images below the folder of the file, the category id of each, and the names of categories by their ids.

    Raises:
        ValueError: the file is not as published, an image has no category or several, or the images are missing.
    """
    content = _load(file)
    try:
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        pairs = [(entry["image_id"], int(entry["category_id"])) for entry in content["annotations"]]
        names = {int(entry["id"]): str(entry["name"]) for entry in content.get("categories", ())}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is no annotation file of iNaturalist; it needs {FORMAT}") from None
    category_of = dict(pairs)
    if not files or len(pairs) != len(category_of) or category_of.keys() != files.keys():
        raise ValueError(
            f"{file} has {len(pairs)} annotations of {len(category_of)} images for its {len(files)} images; each image "
            "needs one category"
        )
    ordered = sorted(files, key=files.__getitem__)
    missing = next((files[i] for i in (ordered[0], ordered[-1]) if not (file.parent / files[i]).is_file()), None)
    if missing is not None:
        raise ValueError(f"{file} lists {missing!r}, which is not in {file.parent}; complete the download")
    index = ImageIndex(file.parent, [os.fsencode(files[i]) for i in ordered])
    return index, [category_of[i] for i in ordered], names


def class_numbers(train: list[int], test: list[int], file: Path) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the categories of the training images, sorted, and the position of each image's category in them.

    `file` is named if the test set has a category that the training set lacks, which raises ValueError.
    """
    categories = sorted(set(train))
    if unknown := set(test) - set(categories):
        raise ValueError(f"{file} has categories that no training image has, e.g. {min(unknown)}; both need the same")
    first, second = (np.searchsorted(categories, split).astype(np.int64) for split in (train, test))
    return categories, first, second


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} is no annotation file of iNaturalist; it needs {FORMAT}")
    return content
