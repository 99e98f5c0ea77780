"""The data sets that the built-in suites name, in their published layouts, with a few painted images each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.evaluation.depth.conftest import write_nyu
from tests.evaluation.geometric_correspondence.conftest import write_navi
from tests.evaluation.object_discovery.conftest import square, write_voc
from tests.evaluation.retrieval.conftest import write_retrieval
from tests.helpers.command_line import write_davis
from tests.helpers.detect_data import write_split
from tests.helpers.labelled_images import coloured_folder
from tests.helpers.published_sets import write_cub, write_flowers
from tests.helpers.spair_data import coloured_patches, write_spair

Size = tuple[int, int]
"""Height and width in pixels."""


def write_dense(root: Path, size: Size = (48, 64), train: int = 3) -> Path:
    """Write the data sets of the suite `dense`.

    Args:
        root: folder of the data sets.
        size: size of the images of segmentation and object discovery.
        train: number of training images of segmentation and depth.
    """
    write_devkit(root / "VOCdevkit", size, train)
    write_ade20k(root / "ADEChallengeData2016", size, train)
    write_cityscapes(root / "cityscapes", size, train)
    write_coco(root / "coco", size, train)
    write_nyu(root / "NYU", train=train)
    write_davis(root / "DAVIS")
    write_pairs(root / "SPair-71k")
    write_navi(root / "NAVI", ("ball", "globe"))
    return root


def write_classification(root: Path) -> Path:
    """Write the data sets of the suite `classification`."""
    coloured_folder(root / "imagenet")
    write_flowers(root / "flowers")
    write_cub(root)
    for name in ("roxford5k", "rparis6k"):
        write_retrieval(root / name)
    return root


def write_papers(root: Path, size: Size = (48, 64), train: int = 3) -> Path:
    """Write the data sets of the suite `papers` as `write_dense` does."""
    write_ade20k(root / "ADEChallengeData2016", size, train)
    write_coco(root / "coco", size, train)
    (root / "coco_20k_filenames.txt").write_text("train2014/000000000000.png\ntrain2014/000000000002.png\n")
    write_davis(root / "DAVIS")
    write_pairs(root / "SPair-71k")
    coloured_folder(root / "imagenet")
    write_imagenet_s(root / "imagenet-s", size, train)
    return root


def write_labelled(image: Path, labels: Path, values: Sequence[int], size: Size, seed: int) -> None:
    """Write an image of 3 x 4 blocks whose colours tell their labels, all drawn from `values`."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(values), (3, 4))
    colours = np.random.default_rng(0).integers(30, 225, (len(values), 3))[chosen].astype(np.uint8)
    label = np.asarray(values, np.uint8)[chosen]
    for path, pixels in ((image, colours), (labels, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST).save(path)


def write_devkit(root: Path, size: Size, train: int) -> None:
    """Write VOC2012 with its augmented labels, and VOC2007, both with boxes too."""
    year, values = root / "VOC2012", [0, 8, 12, 15, 255]
    splits = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033", "2007_000042"]}
    splits["trainaug"] = [*splits["train"], *(f"2008_{i:06d}" for i in range(train - 2))]
    lists = year / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        labels = year / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
        for name in names:
            write_labelled(
                year / "JPEGImages" / f"{name}.jpg", labels / f"{name}.png", values, size, seed=int(name[-2:])
            )
    (left, top), (right, bottom) = (size[1] // 4, size[0] // 4), (3 * size[1] // 4, 3 * size[0] // 4)
    pixels, box = square(left, top, right, bottom, size), (left + 1, top + 1, right, bottom)
    write_voc(root / "VOC2007", {name: (pixels, [(box, "")]) for name in ("000005", "000007")})
    write_voc(year, {name: (pixels, [(box, "truncated")]) for name in ("2008_000008", "2008_000015")})


def write_ade20k(root: Path, size: Size, train: int) -> None:
    for split, name, count in (("training", "train", train), ("validation", "val", 2)):
        for i in range(1, count + 1):
            stem = f"ADE_{name}_{i:08d}"
            image, labels = root / "images" / split / f"{stem}.jpg", root / "annotations" / split / f"{stem}.png"
            write_labelled(image, labels, [0, 1, 2, 3, 150], size, seed=i)


def write_cityscapes(root: Path, size: Size, train: int) -> None:
    for split, city, count in (("train", "aachen", train), ("val", "munster", 2), ("test", "berlin", 1)):
        for i in range(count):
            stem = f"{city}_{i:06d}_000019"
            image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            values = [3] if split == "test" else [0, 3, 7, 11, 26, 33]  # labels of the test set are secret
            write_labelled(image, root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", values, size, seed=i)
            (root / "gtFine" / split / city / f"{stem}_gtFine_polygons.json").write_text("{}")


def write_coco(root: Path, size: Size, train: int) -> None:
    """Write painted shapes with boxes, and label maps in which the shapes are persons and the ground is grass."""
    for split in ("train2014", "train2017", "val2017"):
        write_split(root, split, train if split == "train2017" else 4, size=size[::-1])
        if split != "train2014":
            labels = root / "stuffthingmaps_trainval2017" / split
            labels.mkdir(parents=True)
            for path in (root / split).iterdir():
                with Image.open(path) as image:
                    ground = (np.asarray(image.convert("RGB")) == 90).all(-1)
                Image.fromarray(np.where(ground, 123, 0).astype(np.uint8)).save(labels / f"{path.stem}.png")


def write_imagenet_s(root: Path, size: Size, train: int) -> None:
    for split, count in (("train-semi", train), ("validation", 2)):
        for number, wnid in enumerate(("n01440764", "n01443537"), start=1):
            for i in range(count):
                image, labels = (root / f"{split}{part}" / wnid / f"{wnid}_{i}" for part in ("", "-segmentation"))
                write_labelled(image.with_suffix(".JPEG"), labels.with_suffix(".png"), [0, number], size, seed=i)
                with Image.open(labels.with_suffix(".png")) as grey:  # classes are stored as R + 256 G
                    red, nothing = np.asarray(grey), np.zeros(size, np.uint8)
                Image.fromarray(np.stack([red, nothing, nothing], axis=-1)).save(labels.with_suffix(".png"))


def write_pairs(root: Path) -> None:
    """Write three pairs of two categories for SPair-71k: an image, and the same upside down."""
    image, points = coloured_patches(0), [[3.5, 3.5], [43.5, 27.5], [91.5, 59.5]]
    truth = {"src_kps": points, "trg_kps": [[x, len(image) - 1 - y] for x, y in points]}
    names = ("000001-a-b:aeroplane", "000002-b-a:aeroplane", "000003-a-b:cat")
    write_spair(root, dict.fromkeys(names, truth), {"a": image, "b": image[::-1]})
