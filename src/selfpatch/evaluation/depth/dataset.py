"""Images with a depth for each pixel: NYU Depth v2 by its lists, or folders of pairs.

::

    nyu_train.txt, nyu_test.txt      one pair per line: rgb depth focal, with spaces or tabs between; paths below
                                     the folder

    train/rgb/<name>.jpg             any images
    train/depth/<name>.png           whole numbers, `depth_scale` to a metre; 0 where the depth is not known
    test/ or val/                    likewise
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.core.folders import files_below
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text_files import numbered_lines
from selfpatch.data.decode.pillow import read_image, stored_image
from selfpatch.data.images import evenly_spread

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIX = ".png"
NYU_SIZE = 480, 640
"""Height and width of NYU's images, in pixels."""


@dataclass(frozen=True)
class DepthSet:
    """The images of one split."""

    names: list[str]
    """Path of each image below the folder of the data set."""
    images: list[Path]
    depths: list[Path]
    scale: float
    """Units of a depth file in a metre."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """Read the i-th image as RGB, and its depth in metres, float32 [h, w], 0 where it is not known.

        Raises:
            ValueError: a file cannot be read, or the two differ in size.
        """
        image, path = read_image(self.images[i]), self.depths[i]
        with stored_image(path, "the depths") as file:
            values = np.asarray(file)
            if file.mode in ("P", "1") or file.format == "JPEG":
                raise ValueError(
                    f"it is a {file.format} file of mode {file.mode}; depths are grey values, as in 16-bit PNG"
                )
        if values.shape != (image.height, image.width):
            raise ValueError(
                f"{self.images[i]} is {image.width} x {image.height} pixels and its depths {path} are "
                f"{list(values.shape)}; use images and grey depth maps of one size"
            )
        return image, values.astype(np.float32) / np.float32(self.scale)

    def limited(self, num_images: int | None) -> "DepthSet":
        """Return at most `num_images` of the images, evenly spread; all of them if it is None."""
        if num_images is None or num_images >= len(self):
            return self
        chosen = evenly_spread(np.arange(len(self)), num_images)
        names, images, depths = ([part[i] for i in chosen] for part in (self.names, self.images, self.depths))
        return replace(self, names=names, images=images, depths=depths)

    def fingerprint(self) -> str:
        """Return a hash of the names and of the sizes of the files."""
        digest = hashlib.sha256(f"{self.scale}\n".encode())
        for name, image, depth in zip(self.names, self.images, self.depths, strict=True):
            digest.update(f"{name!r} {image.stat().st_size} {depth.stat().st_size}\n".encode())
        return digest.hexdigest()


def open_depth_splits(data: str | Path, scale: float) -> tuple[DepthSet, DepthSet]:
    """Open the training and the test images.

    Raises:
        ValueError: a split is missing, empty or damaged, or an image has no depth map.
    """
    root = Path(data).expanduser()
    lists = [root / f"nyu_{split}.txt" for split in ("train", "test")]
    if all(path.is_file() for path in lists):
        train, test = (_listed(root, path, scale) for path in lists)
        return train, test
    tests = root / "test" if (root / "test").is_dir() else root / "val"
    if not all((folder / part).is_dir() for folder in (root / "train", tests) for part in ("rgb", "depth")):
        raise ValueError(
            f"{root} has neither nyu_train.txt and nyu_test.txt, nor train/ and test/ (or val/) with rgb/ and depth/ "
            "in each; give a folder that has"
        )
    return _pairs(root, root / "train", scale), _pairs(root, tests, scale)


def _listed(root: Path, file: Path, scale: float) -> DepthSet:
    names, images, depths = [], [], []
    for number, line in numbered_lines(file):
        where = f"line {number} of {file}"
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if words[1:2] == ["None"]:
            continue
        if len(words) not in (2, 3):
            raise ValueError(f"{where} is {line!r}; write `rgb depth focal`, paths without spaces, or tabs in between")
        image, depth = (path_below(root, word.lstrip("/"), where) for word in words[:2])
        for path in (image, depth):
            if not path.is_file():
                raise ValueError(f"there is no file {path}, which {where} names; check the download")
        names.append(words[0].lstrip("/"))
        images.append(image)
        depths.append(depth)
    if not names:
        raise ValueError(f"{file} names no pair; write a line `rgb depth focal` for each")
    return DepthSet(names, images, depths, scale)


def _pairs(root: Path, folder: Path, scale: float) -> DepthSet:
    images = files_below(folder / "rgb", IMAGE_SUFFIXES)
    depths = [folder / "depth" / path.relative_to(folder / "rgb").with_suffix(DEPTH_SUFFIX) for path in images]
    if not images:
        raise ValueError(f"{folder / 'rgb'} has no images; it should have JPEG or PNG files")
    for image, depth in zip(images, depths, strict=True):
        if not depth.is_file():
            raise ValueError(f"{image} has no depth map {depth}; add it, or remove the image")
    return DepthSet([path.relative_to(root).as_posix() for path in images], images, depths, scale)
