"""The region that two crops share, sampled from both maps of patches on one grid (RoIAlign, arXiv 1703.06870)."""

import torch
from torch import Tensor
from torchvision.ops import roi_align


def align_overlap(
    maps: Tensor, other_maps: Tensor, boxes: Tensor, other_boxes: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample two crops of each image on one grid over the region that both show.

        for each image:
            undo the flip of each map
            region = intersection of the two boxes
            for each map: RoIAlign of the region, in cells of the map, to `size`

    On a GPU, torchvision's backward pass of RoIAlign sums in a varying order.

    Args:
        maps: [B, h, w, D] patches of one crop.
        other_maps: [B, h', w', D'] patches of the other.
        boxes: [B, 5] (left, top, width, height, flipped) of the crops in pixels of the image.
        other_boxes: [B, 5] of the others.
        size: rows and columns of the common grid.

    Returns:
        Patches [B, N, D] and [B, N, D'] of the grid's N = rows * columns cells, row by row, and [B] bool, whether the
        region is at least one cell of the first map high and wide. Patches of smaller regions have no meaning.
    """
    rois = overlap_rois(boxes, other_boxes, maps)
    sampled, other_sampled = (
        sample_overlap(maps, boxes, other_boxes, size),
        sample_overlap(other_maps, other_boxes, boxes, size),
    )
    return sampled, other_sampled, (rois[:, 2:] - rois[:, :2] >= 1).all(1)


def sample_overlap(maps: Tensor, boxes: Tensor, other_boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample one crop of each image on a grid over the region that it shares with another, [B, N, D].

    Arguments are as for `align_overlap`.
    """
    return _sample(_unflipped(maps, boxes[:, 4]), overlap_rois(boxes, other_boxes, maps), size)


def overlaps(boxes: Tensor, other_boxes: Tensor) -> Tensor:
    """Return whether two crops of each image overlap, [B] bool; boxes [B, 5] are as for `align_overlap`."""
    begin = torch.maximum(boxes[:, :2], other_boxes[:, :2])
    end = torch.minimum(boxes[:, :2] + boxes[:, 2:4], other_boxes[:, :2] + other_boxes[:, 2:4])
    return (end > begin).all(1)


def overlap_rois(boxes: Tensor, other_boxes: Tensor, maps: Tensor) -> Tensor:
    """Return the region that two crops share, in cells of the first one's unflipped map, [B, 4] (x0, y0, x1, y1).

    Arguments are as for `align_overlap`. Regions end at the map; without overlap, x1 <= x0 or y1 <= y0.
    """
    h, w = maps.shape[1:3]
    begin = torch.maximum(boxes[:, :2], other_boxes[:, :2])
    end = torch.minimum(boxes[:, :2] + boxes[:, 2:4], other_boxes[:, :2] + other_boxes[:, 2:4])
    shares = [((corner - boxes[:, :2]) / boxes[:, 2:4]).clamp(0, 1) for corner in (begin, end)]
    x0, y0, x1, y1 = torch.cat(shares, 1).unbind(1)
    # The host would wait for a tensor of the sides on its way to a GPU.
    return torch.stack([x0 * w, y0 * h, x1 * w, y1 * h], 1)


def _unflipped(maps: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped[:, None, None, None] > 0.5, maps.flip(2), maps)


def _sample(maps: Tensor, rois: Tensor, size: tuple[int, int]) -> Tensor:
    """Return RoIAlign of one region of each map [B, h, w, D], [B, N, D], in float32 at least.

    It takes the number of an image as a value of the maps' type, and bfloat16 has no 257.
    """
    images = torch.arange(len(rois), device=rois.device, dtype=rois.dtype)
    regions = torch.cat([images[:, None], rois], 1)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return roi_align(maps.to(dtype).permute(0, 3, 1, 2), regions.to(dtype), size, aligned=True).flatten(2).mT
