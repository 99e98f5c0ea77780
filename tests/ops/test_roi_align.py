"""Two crops of an image, sampled over the region that both show."""

from __future__ import annotations

import torch

from selfpatch.ops.roi_align import align_overlap, overlap_rois, sample_overlap

GRID = 12


def crop_of_ramp(box: list[float], side: int = GRID) -> torch.Tensor:
    """Patches [side, side, 2] of a crop whose features are the (x, y) of their centres in the image."""
    left, top, width, height, flipped = box
    steps = (torch.arange(side) + 0.5) / side
    x, y = left + steps * width, top + steps * height
    if flipped:
        x = x.flip(0)
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)


def test_both_crops_are_sampled_at_the_same_points_of_the_image() -> None:
    boxes = [[10.0, 20.0, 60.0, 60.0, 0.0], [0.0, 0.0, 90.0, 60.0, 1.0], [40.0, 10.0, 30.0, 30.0, 1.0]]
    others = [[30.0, 10.0, 80.0, 50.0, 1.0], [20.0, 20.0, 60.0, 60.0, 0.0], [45.0, 15.0, 60.0, 60.0, 0.0]]
    maps, other_maps = (torch.stack([crop_of_ramp(box) for box in part]) for part in (boxes, others))
    a, b, overlaps = align_overlap(maps, other_maps, torch.tensor(boxes), torch.tensor(others), (4, 5))
    assert overlaps.all()
    inner = torch.arange(20).view(4, 5)[1:-1, 1:-1].flatten()  # beyond the outermost centres, maps are constant
    torch.testing.assert_close(a[:, inner], b[:, inner], rtol=0, atol=0.05)
    begin, end = torch.tensor([30.0, 20.0]), torch.tensor([70.0, 60.0])  # of the first pair's region
    middle = begin + (end - begin) * torch.tensor([2.5 / 5, 1.5 / 4])
    torch.testing.assert_close(a[0, 7], middle, rtol=0, atol=0.05)


def test_regions_are_in_cells_and_crops_apart_have_none() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60.0, 30.0, 0.0], [0.0, 0.0, 10.0, 10.0, 0.0], [0.0, 0.0, 24.0, 24.0, 0.0]])
    others = torch.tensor([[30.0, 0.0, 60.0, 60.0, 0.0], [20.0, 20.0, 10.0, 10.0, 0.0], [23.0, 0.0, 24.0, 24.0, 0.0]])
    maps = torch.zeros(3, GRID, GRID, 2)
    rois = overlap_rois(boxes, others, maps)
    torch.testing.assert_close(rois[0], torch.tensor([6.0, 0.0, 12.0, 12.0]))
    *_, overlaps = align_overlap(maps, maps, boxes, others, (3, 3))
    assert overlaps.tolist() == [True, False, False], "the last two share half a cell"


def test_maps_of_bfloat16_are_sampled_from_their_own_image() -> None:
    """Features of a ResNet are in autocast's type, in which numbers of images above 256 have no exact value."""
    maps = torch.arange(600.0)[:, None, None, None].remainder(251).expand(-1, 3, 3, 2).bfloat16()  # exact values
    boxes = torch.tensor([[10.0, 20.0, 60.0, 60.0, 0.0]]).expand(600, -1)
    others = torch.tensor([[30.0, 10.0, 80.0, 50.0, 1.0]]).expand(600, -1)
    with torch.autocast("cpu", torch.bfloat16):
        sampled = sample_overlap(maps, boxes, others, (2, 2))
    assert torch.equal(sampled.float(), maps.float()[:, :2, :2].flatten(1, 2))
