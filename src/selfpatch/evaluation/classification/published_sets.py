"""Labelled sets as published, with the classes of the images in files: iNaturalist, Flowers, Cars, CUB."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NotRequired

import numpy as np
from scipy.io import loadmat
from typing_extensions import TypedDict

from selfpatch.config.json_schema import Id, LongList, check_json
from selfpatch.core.folders import stems_in
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import counted
from selfpatch.core.text_files import numbered_lines, read_json

INATURALIST = "images with `id` and `file_name`, and annotations with `image_id` and `category_id`"
Categories = dict[str, int]
"""Category of each image by its path below the folder of the data set."""


class _Image(TypedDict):
    id: Id
    file_name: str


class _Category(TypedDict):
    id: Id
    name: str


class _Annotation(TypedDict):
    image_id: Id
    category_id: Id


class _INaturalist(TypedDict):
    images: LongList[_Image]
    annotations: LongList[_Annotation]
    categories: NotRequired[LongList[_Category]]


class PublishedSet(NamedTuple):
    """Images of both splits."""

    train: Categories
    test: Categories
    names: Mapping[int, str]
    """Names of categories; those without have their number as a name."""


def read_published(root: Path) -> PublishedSet | None:
    """Read the set in a folder; return None if it is of no kind that is known here.

    iNaturalist has `trainYEAR.json` and `valYEAR.json`, of which the latest year is taken. Flowers has `setid.mat`,
    `imagelabels.mat` and `jpg/`; training and validation images are the training set, as in the released fine-tuning of
    iBOT. Cars has `cars_annos.mat` and `car_ims/`. CUB has `images.txt`, `image_class_labels.txt`,
    `train_test_split.txt` and `images/`, perhaps in `CUB_200_2011/`.

    Raises:
        ValueError: a file is not as published, images are missing, or the test set has a category of its own.
    """
    found = _inaturalist(root) or _flowers(root) or _cars(root) or _cub(root)
    if found is None:
        return None
    for split in (found.train, found.test):
        files = sorted(split)
        if not files:
            raise ValueError(f"{root} has a split without images; complete the download")
        missing = next((file for file in (files[0], files[-1]) if not (root / file).is_file()), None)
        if missing is not None:
            raise ValueError(f"{root} lists {missing!r}, which is not there; complete the download")
    if unknown := {*found.test.values()} - {*found.train.values()}:
        raise ValueError(f"the test images of {root} have categories that no training image has, e.g. {min(unknown)}")
    return found


def _inaturalist(root: Path) -> PublishedSet | None:
    years = [stem.removeprefix("train") for stem in stems_in(root, ".json") if re.fullmatch("train20[0-9]{2}", stem)]
    year = next((year for year in reversed(years) if (root / f"val{year}.json").is_file()), None)
    if year is None:
        return None
    (train, names), (test, _) = (_read_annotations(root / f"{split}{year}.json") for split in ("train", "val"))
    return PublishedSet(train, test, names)


def _read_annotations(file: Path) -> tuple[Categories, dict[int, str]]:
    """Return the images of an annotation file of iNaturalist, and the names of its categories."""
    try:
        content = check_json(read_json(file), _INaturalist, str(file))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        if not len({*files.values()}) == len(files) == len(content["images"]):
            raise ValueError("two images have one id or name")
    except ValueError as error:
        raise ValueError(
            f"{file} is no annotation file of iNaturalist; it needs {INATURALIST}, each once ({error})"
        ) from None
    pairs = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
    names = {entry["id"]: entry["name"] for entry in content.get("categories", ())}
    for name in files.values():
        path_below(file.parent, name, file)
    category_of = dict(pairs)
    if len(pairs) != len(category_of) or category_of.keys() != files.keys():
        raise ValueError(
            f"{file} has {counted(len(pairs), 'annotation')} of {counted(len(category_of), 'image')} for its "
            f"{counted(len(files), 'image')}; each image needs one category"
        )
    return {files[number]: category for number, category in category_of.items()}, names


def _flowers(root: Path) -> PublishedSet | None:
    if not ((root / "setid.mat").is_file() and (root / "imagelabels.mat").is_file()):
        return None
    (labels,) = _matlab(root / "imagelabels.mat", "labels")
    trained, chosen, tested = _matlab(root / "setid.mat", "trnid", "valid", "tstid")  # numbers of images, from 1

    def split(numbers: np.ndarray) -> Categories:
        return {f"jpg/image_{number:05d}.jpg": int(labels.ravel()[number - 1]) for number in numbers.ravel().tolist()}

    try:
        return PublishedSet({**split(trained), **split(chosen)}, split(tested), {})
    except IndexError:
        raise ValueError(
            f"{root / 'setid.mat'} numbers images that imagelabels.mat does not have; complete the download"
        ) from None


def _cars(root: Path) -> PublishedSet | None:
    file = root / "cars_annos.mat"
    if not file.is_file():
        return None
    annotations, names = _matlab(file, "annotations", "class_names")
    splits: tuple[Categories, Categories] = ({}, {})
    try:
        for entry in annotations.ravel():
            splits[int(entry["test"].item())][str(entry["relative_im_path"].item())] = int(entry["class"].item())
    except (IndexError, TypeError, ValueError):
        raise ValueError(f"{file} is no annotation file of Stanford Cars; complete the download") from None
    for name in (*splits[0], *splits[1]):
        path_below(root, name, file)
    return PublishedSet(*splits, {number: str(name.item()) for number, name in enumerate(names.ravel(), start=1)})


def _cub(root: Path) -> PublishedSet | None:
    """Read CUB-200-2011, whose files have a line `number value` for each image or class."""
    folder = next((f for f in (root, root / "CUB_200_2011") if (f / "train_test_split.txt").is_file()), None)
    if folder is None:
        return None
    images, labels, trained = (
        _numbered(folder / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split")
    )
    if not images.keys() == labels.keys() == trained.keys() or not {*trained.values()} <= {"0", "1"}:
        raise ValueError(
            f"{folder} has images.txt, image_class_labels.txt and train_test_split.txt of other images, or a split "
            "that is neither 0 nor 1; complete the download"
        )
    splits: tuple[Categories, Categories] = ({}, {})
    for number, name in images.items():
        path = path_below(folder / "images", name, folder / "images.txt").relative_to(root).as_posix()
        splits[trained[number] == "0"][path] = _class_number(labels[number], folder)
    names = _numbered(folder / "classes.txt") if (folder / "classes.txt").is_file() else {}
    return PublishedSet(*splits, {_class_number(number, folder): name for number, name in names.items()})


def _class_number(word: str, folder: Path) -> int:
    if not word.isdecimal():
        raise ValueError(f"{folder} has the class {word!r}; CUB numbers its classes from 1")
    return int(word)


def _numbered(file: Path) -> dict[str, str]:
    """Return the values of the lines `number value` of a file, by number."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}, which CUB has; complete the download")
    values: dict[str, str] = {}
    for line_number, line in numbered_lines(file):
        number, _, value = line.partition(" ")
        if not value or number in values:
            raise ValueError(f"line {line_number} of {file} is {line!r}; CUB has `number value`, each number once")
        values[number] = value.strip()
    return values


def _matlab(file: Path, *names: str) -> list[np.ndarray]:
    try:
        content = loadmat(file, variable_names=list(names))
        return [content[name] for name in names]
    except KeyError as error:
        raise ValueError(f"{file} has no {error.args[0]}; complete the download") from None
    except Exception as error:  # the reader fails in many ways on other files
        raise ValueError(f"cannot read {file}: {error}") from None
