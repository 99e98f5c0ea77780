"""Masks: pycocotools' pixels, and masks of boxes pasted into images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.evaluation.detection.augmentation import Placement, place_objects
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.masks import extent, paste, to_pixels

coco = pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


def test_masks_are_those_of_pycocotools(data_dir: Path) -> None:
    """All objects of real annotations, as they are: outlines and boxes are read and drawn without loss."""
    api = coco.COCO(str(data_dir / "coco_mini/annotations/instances_val2017.json"))
    for image in open_split(data_dir / "coco_mini", "val2017").images[:10]:
        placement = Placement((0.0, 0.0, float(image.width), float(image.height)), image.width, image.height)
        target = place_objects(image.objects(), image.width, image.height, placement)
        rows = [a for a in api.loadAnns(api.getAnnIds(image.id)) if not a["iscrowd"]]
        masks = np.stack([api.annToMask(row) for row in rows])
        assert np.array_equal(target["masks"].numpy(), masks[masks.any((1, 2))])
        boxes = torch.tensor([row["bbox"] for row in rows])[torch.from_numpy(masks.any((1, 2)))]
        assert torch.allclose(target["boxes"][:, :2], boxes[:, :2], atol=1e-3)
        assert torch.allclose(target["boxes"][:, 2:] - target["boxes"][:, :2], boxes[:, 2:], atol=1e-3)


def test_a_pasted_mask_fills_its_box() -> None:
    boxes = torch.tensor([[10.0, 5.0, 38.0, 33.0], [-4.0, 10.0, 6.0, 20.0], [70.0, 0.0, 80.0, 10.0]])
    (first, second, outside) = paste(torch.ones(3, 28, 28), boxes, 48, 64)
    full = to_pixels([first, second, outside], 48, 64)
    assert extent(full[0]) == (10, 5, 38, 33)
    assert full[0].sum() == 28 * 28
    assert extent(full[1]) == (0, 10, 6, 20)
    assert full[2].sum() == 0


def test_a_pasted_mask_is_aligned_to_pixel_centres() -> None:
    cells = torch.zeros(1, 28, 28)
    cells[0, 3:20, 5:11] = 1
    (pasted,) = paste(cells, torch.tensor([[10.0, 5.0, 38.0, 33.0]]), 48, 64)
    wanted = np.zeros((48, 64), np.uint8)
    wanted[8:25, 15:21] = 1
    assert np.array_equal(to_pixels([pasted], 48, 64)[0], wanted)
