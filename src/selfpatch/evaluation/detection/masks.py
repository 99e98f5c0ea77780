"""Instance masks as polygons, run lengths (RLE) and pixels, converted by pycocotools as in the COCO benchmark."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Polygons = tuple[np.ndarray, ...]
"""Polygons [n, 2] of (x, y) in pixels, the parts of one object."""
Rle = dict[str, Any]
"""{"size": [height, width], "counts": run lengths down the columns, as a list or packed in a string}."""


def pycocotools(module: str) -> Any:
    """Import a module of the optional package pycocotools.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        return importlib.import_module(f"pycocotools.{module}")
    except ImportError:
        raise ValueError("detection needs pycocotools; install it with: pip install 'selfpatch[detect]'") from None
    except ValueError as error:  # compiled for another numpy
        raise ValueError(f"pycocotools cannot be loaded ({error}); install it again, for this numpy") from None


def packed(segmentation: Polygons | Rle, height: int, width: int) -> Rle:
    """Return packed run lengths of at least one polygon, or of run lengths; parts outside the image are cut off."""
    api = pycocotools("mask")
    if isinstance(segmentation, dict):
        as_list = isinstance(segmentation["counts"], list)
        return api.frPyObjects(segmentation, height, width) if as_list else segmentation
    return api.merge(api.frPyObjects([polygon.ravel().tolist() for polygon in segmentation], height, width))


def to_pixels(rles: Sequence[Rle], height: int, width: int) -> np.ndarray:
    """Return the pixels of masks, uint8 [n, height, width], 1 inside."""
    if not rles:
        return np.zeros((0, height, width), np.uint8)
    return np.ascontiguousarray(pycocotools("mask").decode(list(rles)).transpose(2, 0, 1))


def from_pixels(mask: np.ndarray) -> Rle:
    """Return the run lengths of a mask, bool [H, W], in the format of results files."""
    rle = pycocotools("mask").encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def extent(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return (left, top, right, bottom) of the nonzero pixels of a mask, uint8 [H, W], or None if there are none.

    Right and bottom are the first pixels outside.
    """
    return Image.fromarray(mask).getbbox()


def paste(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[Rle]:
    """Return masks of the image from masks of boxes, sampled bilinearly at the centre of each pixel.

    Mask probabilities [n, m, m] lie in the cells of each box [n, 4] (left, top, right, bottom), in pixels of an image
    of this height and width. The masks hold the pixels whose probability is at least 1/2. Beyond the centres of the
    outermost cells, the probability fades to 0 within half a cell, as in Detectron2 and mmdetection.
    """
    pasted = []
    for cells, box in zip(probabilities.float().cpu(), boxes.float().cpu(), strict=True):
        left, top = (int(side) for side in box[:2].floor().clamp(min=0))
        right, bottom = min(width, int(box[2].ceil())), min(height, int(box[3].ceil()))
        mask = np.zeros((height, width), bool)
        if right > left and bottom > top:
            x = (torch.arange(left, right) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
            y = (torch.arange(top, bottom) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [h, w, 2]
            sampled = F.grid_sample(cells[None, None], grid[None], align_corners=False)
            mask[top:bottom, left:right] = (sampled[0, 0] >= 0.5).numpy()
        pasted.append(from_pixels(mask))
    return pasted
