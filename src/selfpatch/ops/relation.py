"""Self-relations of features and their alignment between views (SERE, arXiv 2206.05184).

Both kinds of relation are products of rows with one another, R = X X^T: the rows are the patches of one attention head
(spatial) or the channels (channel). All functions keep the dtype they are given, under autocast too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.reference import fast_path_of
from selfpatch.ops.cross_entropy import soft_cross_entropy

OUTSIDE = 2.0
"""A grid coordinate at which a map of any size is sampled as 0."""


def spatial_relation(tokens: Tensor, num_heads: int) -> Tensor:
    """How the patches of an image relate within each head: R[h, i, j] = z_h[i] . z_h[j] / sqrt(D / H).

    Args:
        tokens: [..., N, D].

    Returns:
        [..., H, N, N].
    """
    return _products(_spatial_rows(tokens, num_heads))


def channel_relation(tokens: Tensor, scale: float) -> Tensor:
    """How the channels of an image relate over its patches: R[c, d] = sum_i (z[i, c] / s) (z[i, d] / s).

    Args:
        tokens: [..., N, D].
        scale: s.

    Returns:
        [..., D, D].
    """
    return _products(_channel_rows(tokens, scale))


def relation_target(relation: Tensor, temp: float) -> Tensor:
    """The teacher's distributions, one a row, sharpened: softmax(R / temp) over [..., R, R]."""
    return (relation / temp).softmax(-1)


def overlap_grids(boxes_a: Tensor, boxes_b: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same points of the image in the coordinates of two crops of it, each seen as it is, flipped or not:

        for y in linspace(upper end of the overlap, lower end, size):
            for x in linspace(left end of the overlap, right end, size):
                (x, y) in crop a, (x, y) in crop b

    Args:
        boxes_a, boxes_b: [..., 5] (left, top, width, height, flipped) in pixels of the image; leading dimensions
            broadcast.
        size: points a side, s.

    Returns:
        Two grids [..., s, s, 2] of (x, y) as `grid_sample` takes them, -1 and 1 being the edges of the crop. All points
        are outside where the crops do not overlap.
    """
    boxes_a, boxes_b = torch.broadcast_tensors(boxes_a, boxes_b)
    begin = torch.maximum(boxes_a[..., 0:2], boxes_b[..., 0:2])
    end = torch.minimum(_lower_right(boxes_a), _lower_right(boxes_b))
    steps = torch.linspace(0, 1, size, device=begin.device, dtype=begin.dtype)[:, None]
    ticks = torch.lerp(begin.unsqueeze(-2), end.unsqueeze(-2), steps)  # [..., s, 2]
    # Between crops that only touch or lie apart the ticks may fall on an edge, where sampling is not 0 yet.
    overlap = (end > begin).all(-1)[..., None, None, None]
    grid_a, grid_b = (_grid(ticks, boxes).where(overlap, OUTSIDE) for boxes in (boxes_a, boxes_b))
    return grid_a, grid_b


def sample_patches_reference(patches: Tensor, grid: Tensor) -> Tensor:
    """Features at points of a crop, bilinear between the patches' centres, with zeros around the crop.

    Args:
        patches: [..., h, w, D].
        grid: [..., s, s, 2] (x, y), -1 and 1 being the edges of the crop; leading dimensions broadcast.

    Returns:
        [..., s*s, D].
    """
    lead = torch.broadcast_shapes(patches.shape[:-3], grid.shape[:-3])
    maps = patches.expand(*lead, -1, -1, -1).reshape(-1, *patches.shape[-3:]).permute(0, 3, 1, 2)
    grids = grid.expand(*lead, -1, -1, -1).reshape(-1, *grid.shape[-3:])
    sampled = F.grid_sample(maps, grids, align_corners=False)  # [..., D, s, s]
    return sampled.flatten(2).mT.reshape(*lead, -1, patches.shape[-1])


@fast_path_of(sample_patches_reference)
def sample_patches(patches: Tensor, grid: Tensor) -> Tensor:
    """`sample_patches_reference` as one product with the bilinear weights. Unlike that of `grid_sample`, its backward
    pass on a GPU adds up in the same order every time."""
    h, w = patches.shape[-3:-1]
    weights = _tents(grid[..., 1], h).unsqueeze(-1) * _tents(grid[..., 0], w).unsqueeze(-2)  # [..., s, s, h, w]
    with torch.autocast(patches.device.type, enabled=False):
        return torch.einsum("...pn,...nd->...pd", weights.flatten(-2).flatten(-3, -2), patches.flatten(-3, -2))


def sample_relation_reference(relation: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    """A spatial relation between points of a crop instead of patches: both axes of [..., H, N, N], N = height * width,
    sampled on the grid [..., s, s, 2] -> [..., H, s*s, s*s]."""
    grid = grid.unsqueeze(-4)  # the same for every head
    for _ in range(2):  # the columns; then the rows, which by then are columns
        relation = sample_patches_reference(relation.mT.unflatten(-2, (height, width)), grid)
    return relation


def spatial_relation_loss_reference(
    student: Tensor, teacher: Tensor, student_grid: Tensor, teacher_grid: Tensor, num_heads: int, temp: float
) -> Tensor:
    """Cross-entropy between the spatial relations of two views on the points that they share:

        R_s, R_t = the relations of student and teacher, both axes sampled on the view's grid
        mean over images, heads and rows i of H(softmax(R_t[i] / temp), softmax(R_s[i]))

    Args:
        student, teacher: [..., h, w, D] tokens, whose sizes may differ; the target takes no gradient.
        student_grid, teacher_grid: [..., s, s, 2]; leading dimensions broadcast with those of the tokens.

    Returns:
        A scalar.
    """

    def related(patches: Tensor, grid: Tensor) -> Tensor:
        h, w = patches.shape[-3:-1]
        return sample_relation_reference(spatial_relation(patches.flatten(-3, -2), num_heads), grid, h, w)

    target = relation_target(related(teacher.detach(), teacher_grid), temp)
    return soft_cross_entropy(target, related(student, student_grid)).mean()


@fast_path_of(spatial_relation_loss_reference)
def spatial_relation_loss(
    student: Tensor, teacher: Tensor, student_grid: Tensor, teacher_grid: Tensor, num_heads: int, temp: float
) -> Tensor:
    """`spatial_relation_loss_reference`, but features are sampled first and related afterwards: sampling is linear, so
    that both are the same. No relation outlives the call."""
    with torch.no_grad():
        target = relation_target(spatial_relation(sample_patches(teacher, teacher_grid), num_heads), temp)
    return _cross_entropy_of_products(target, _spatial_rows(sample_patches(student, student_grid), num_heads))


def channel_relation_loss_reference(student: Tensor, target: Tensor, scale: float) -> Tensor:
    """Cross-entropy between channel relations, the mean over images and rows of H(target, softmax(R_s)).

    Args:
        student: [..., N, D] tokens.
        target: [..., D, D] the teacher's distributions; takes no gradient.
        scale: of `channel_relation`.

    Returns:
        A scalar.
    """
    return soft_cross_entropy(target.detach(), channel_relation(student, scale)).mean()


@fast_path_of(channel_relation_loss_reference)
def channel_relation_loss(student: Tensor, target: Tensor, scale: float) -> Tensor:
    """`channel_relation_loss_reference`; no relation of the student outlives the call."""
    return _cross_entropy_of_products(target, _channel_rows(student, scale))


def _spatial_rows(tokens: Tensor, num_heads: int) -> Tensor:
    """[..., N, D] -> [..., H, N, d], so scaled that their products are the relation."""
    heads = tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)
    return heads * heads.shape[-1] ** -0.25


def _channel_rows(tokens: Tensor, scale: float) -> Tensor:
    """[..., N, D] -> [..., D, N], so scaled that their products are the relation."""
    return tokens.mT / scale


def _products(rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.mT


class _CrossEntropyOfProducts(torch.autograd.Function):
    """`soft_cross_entropy(target, rows @ rows.mT).mean()`, its gradient for the rows [..., R, C] computed at once.

    With S = softmax(X X^T) - target over the number of rows, it is (S + S^T) X: as small as the rows themselves, while
    autograd would keep three tensors [..., R, R] of every pair of views until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            relation = rows @ rows.mT
            loss = soft_cross_entropy(target, relation).mean()
            if ctx.needs_input_grad[0]:
                slope = relation.softmax(-1).sub_(target).div_(target[..., 0].numel())
                ctx.save_for_backward(slope @ rows + slope.mT @ rows)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None


def _cross_entropy_of_products(target: Tensor, rows: Tensor) -> Tensor:
    loss: Tensor = _CrossEntropyOfProducts.apply(rows, target.detach())
    return loss


def _lower_right(boxes: Tensor) -> Tensor:
    return boxes[..., 0:2] + boxes[..., 2:4]


def _grid(ticks: Tensor, boxes: Tensor) -> Tensor:
    """Ticks [..., s, 2] in pixels of the image, along both axes, as a grid [..., s, s, 2] of the crop."""
    rows = boxes.unsqueeze(-2)
    ticks = 2 * (ticks - rows[..., 0:2]) / rows[..., 2:4] - 1
    x, y = ticks.unbind(-1)
    x = torch.where(rows[..., 4] > 0.5, -x, x)
    return torch.stack(torch.broadcast_tensors(x.unsqueeze(-2), y.unsqueeze(-1)), -1)


def _tents(coordinates: Tensor, side: int) -> Tensor:
    """Bilinear weights of the patches of a side at coordinates [...] from -1 to 1: [..., side], all 0 far outside."""
    places = ((coordinates + 1) * side - 1) / 2  # patch i has its centre at i
    centres = torch.arange(side, device=coordinates.device, dtype=coordinates.dtype)
    return (1 - (places.unsqueeze(-1) - centres).abs()).clamp(min=0)
