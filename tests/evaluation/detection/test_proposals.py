"""Anchors of the region proposal network."""

from __future__ import annotations

import torch
from torchvision.models.detection.image_list import ImageList

from selfpatch.evaluation.detection.proposals import StridedAnchors


def test_anchors_stand_the_true_stride_apart() -> None:
    """Those of torchvision would be 3 pixels apart where the stride is 3.5."""
    anchors = StridedAnchors((3.5, 7.0), 8)
    maps = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    (found,) = anchors(ImageList(torch.zeros(1, 3, 14, 21), [(14, 21)]), maps)
    centres = (found[:, :2] + found[:, 2:]) / 2
    first, second = centres[: 4 * 6 * 3].view(4, 6, 3, 2), centres[4 * 6 * 3 :].view(2, 3, 3, 2)
    for grid, stride in ((first, 3.5), (second, 7.0)):
        rows, columns = torch.meshgrid(*(torch.arange(side) * stride for side in grid.shape[:2]), indexing="ij")
        for ratio in range(3):
            torch.testing.assert_close(grid[:, :, ratio], torch.stack([columns, rows], dim=-1), atol=1e-5, rtol=0)


def test_anchors_have_the_exact_area_and_ratio() -> None:
    """Those of torchvision are rounded to pixels."""
    anchors = StridedAnchors((4.0,), 8).cell_anchors[0]
    widths, heights = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    torch.testing.assert_close(widths * heights, torch.full((3,), 32.0**2))
    torch.testing.assert_close(heights / widths, torch.tensor([0.5, 1.0, 2.0]))
