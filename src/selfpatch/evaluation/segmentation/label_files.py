"""Label files of segmentation sets: palette or grey images, colours of ImageNet-S, and Matlab's matrices."""

from pathlib import Path

import numpy as np

from selfpatch.data.decode.pillow import as_bad_image, stored_image
from selfpatch.data.sources.image_files import opened
from selfpatch.evaluation.label_maps import read_label_map
from selfpatch.evaluation.segmentation.base_config import Kind

MATRIX = ".mat"
"""Ending of Matlab's files, in which COCO-Stuff 10k has its labels."""


def read_label_values(path: Path, kind: Kind) -> np.ndarray:
    """Read a label file as int64 [h, w]; the value of a colour of ImageNet-S is red + 256 green."""
    if path.suffix == MATRIX:
        from scipy.io import loadmat  # slow to import, and one data set alone needs it

        with as_bad_image(path, "the labels"), opened(path) as stream:
            stored = loadmat(stream, variable_names=["S"])["S"]
            values = stored.astype(np.int64)
            if values.ndim != 2 or (values != stored).any() or values.min(initial=0) < 0:
                raise ValueError("its matrix S is no map of whole numbers from 0; download it again")
            return values
    if kind != "imagenet_s":
        return read_label_map(path, "the labels").values
    with stored_image(path, "the labels") as image:
        colours = np.asarray(image.convert("RGB")).astype(np.int64)
    return colours[..., 0] + 256 * colours[..., 1]


def label_size(path: Path, kind: Kind) -> tuple[int, int]:
    """Return (height, width) of a label file, from its header where it has one; ValueError if it is damaged."""
    if path.suffix == MATRIX:
        height, width = read_label_values(path, kind).shape
        return height, width
    with stored_image(path, "the labels") as header:
        return header.height, header.width
