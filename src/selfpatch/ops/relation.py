"""Self-relations of features and their alignment between views (SERE, arXiv 2206.05184).

A relation is a product of rows, R = X X^T: the rows are the patches of one attention head (spatial) or the channels
(channel). All functions keep the dtype of their input, under autocast too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.config.schema import Size, height_and_width
from selfpatch.core.reference import fast_path_of
from selfpatch.ops.cross_entropy import attach_gradients, soft_cross_entropy

OUTSIDE = 2.0
"""Grid coordinate at which a map of any size is sampled as 0."""


def spatial_relation(tokens: Tensor, num_heads: int) -> Tensor:
    """Relate the patches of an image within each head: R[h, i, j] = z_h[i] . z_h[j] / sqrt(D / H).

    Tokens are [..., N, D], relations [..., H, N, N].
    """
    return _products(_spatial_rows(tokens, num_heads))


def channel_relation(tokens: Tensor, scale: float) -> Tensor:
    """Relate the channels of an image over its patches: R[c, d] = sum_i (z[i, c] / scale) (z[i, d] / scale).

    Tokens are [..., N, D], relations [..., D, D].
    """
    return _products(_channel_rows(tokens, scale))


def relation_target(relation: Tensor, temp: float) -> Tensor:
    """Return the teacher's sharpened distributions, one for each row of R: softmax(R / temp)."""
    return (relation / temp).softmax(-1)


def overlap_grids(boxes_a: Tensor, boxes_b: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return the same image points in the coordinates of two crops, flipped or not.

        for y in linspace(upper end of the overlap, lower end, rows):
            for x in linspace(left end of the overlap, right end, columns):
                (x, y) in crop a, (x, y) in crop b

    Boxes are [..., 5] (left, top, width, height, flipped) in pixels of the image; leading dimensions broadcast. `size`
    is (rows, columns), or one number for both. The two grids are [..., rows, columns, 2] of (x, y) as `grid_sample`
    takes them, with -1 and 1 at the edges of the crop. If the crops do not overlap, all points are outside.
    """
    boxes_a, boxes_b = torch.broadcast_tensors(boxes_a, boxes_b)
    begin = torch.maximum(boxes_a[..., 0:2], boxes_b[..., 0:2])
    end = torch.minimum(*(boxes[..., 0:2] + boxes[..., 2:4] for boxes in (boxes_a, boxes_b)))
    y, x = (  # [..., rows] and [..., columns]
        torch.lerp(
            begin[..., axis, None],
            end[..., axis, None],
            torch.linspace(0, 1, n, device=begin.device, dtype=begin.dtype),
        )
        for n, axis in zip(height_and_width(size), (1, 0), strict=True)
    )
    # If crops only touch or lie apart, the ticks may fall on an edge, where a sample is not 0 yet.
    overlap = (end > begin).all(-1)[..., None, None, None]
    grid_a, grid_b = (_crop_grid(x, y, boxes).where(overlap, OUTSIDE) for boxes in (boxes_a, boxes_b))
    return grid_a, grid_b


def sample_patches_reference(patches: Tensor, grid: Tensor) -> Tensor:
    """Sample features at points of a crop, bilinearly between the patches' centres, with zeros around the crop.

    Patches are [..., h, w, D], grids [..., s, s, 2] of (x, y), with -1 and 1 at the edges of the crop; leading
    dimensions broadcast. The result is [..., s*s, D].
    """
    lead = torch.broadcast_shapes(patches.shape[:-3], grid.shape[:-3])
    maps = patches.expand(*lead, -1, -1, -1).reshape(-1, *patches.shape[-3:]).permute(0, 3, 1, 2)
    grids = grid.expand(*lead, -1, -1, -1).reshape(-1, *grid.shape[-3:])
    sampled = F.grid_sample(maps, grids, align_corners=False)  # [..., D, s, s]
    return sampled.flatten(2).mT.reshape(*lead, -1, patches.shape[-1])


@fast_path_of(sample_patches_reference)
def sample_patches(patches: Tensor, grid: Tensor) -> Tensor:
    """See `sample_patches_reference`; one product with the bilinear weights.

    Unlike that of `grid_sample`, its backward pass on a GPU sums in the same order every time.
    """
    h, w = patches.shape[-3:-1]
    rows, columns = _bilinear_weights(grid[..., 1], h), _bilinear_weights(grid[..., 0], w)
    weights = rows.unsqueeze(-1) * columns.unsqueeze(-2)  # [..., s, s, h, w]
    with torch.autocast(patches.device.type, enabled=False):
        return torch.einsum("...pn,...nd->...pd", weights.flatten(-2).flatten(-3, -2), patches.flatten(-3, -2))


def sample_relation_reference(relation: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    """Sample both axes of a spatial relation [..., H, N, N], N = height * width, at points instead of patches.

    The grid is [..., s, s, 2] as for `sample_patches_reference`; the result is [..., H, s*s, s*s].
    """
    grid = grid.unsqueeze(-4)  # the same for every head
    for _ in range(2):  # first the columns, then the rows, which have become columns
        relation = sample_patches_reference(relation.mT.unflatten(-2, (height, width)), grid)
    return relation


def spatial_relation_loss_reference(
    student: Tensor, teacher: Tensor, student_grid: Tensor, teacher_grid: Tensor, num_heads: int, temp: float
) -> Tensor:
    """Compute the cross-entropy between the spatial relations of two views on the points that they share, a scalar.

        R_s, R_t = the relations of student and teacher, both axes sampled on the view's grid
        mean over images, heads and rows i of H(softmax(R_t[i] / temp), softmax(R_s[i]))

    Args:
        student: [..., h, w, D] tokens.
        teacher: [..., h, w, D] tokens, perhaps of another h and w, which take no gradient.
        student_grid: [..., s, s, 2]; leading dimensions broadcast with the tokens'.
        teacher_grid: [..., s, s, 2].
        num_heads: number of heads.
        temp: temperature of the teacher.
    """

    def sampled_relation(patches: Tensor, grid: Tensor) -> Tensor:
        relation = spatial_relation(patches.flatten(-3, -2), num_heads)
        return sample_relation_reference(relation, grid, *patches.shape[-3:-1])

    target = relation_target(sampled_relation(teacher.detach(), teacher_grid), temp)
    return soft_cross_entropy(target, sampled_relation(student, student_grid)).mean()


@fast_path_of(spatial_relation_loss_reference)
def spatial_relation_loss(
    student: Tensor, teacher: Tensor, student_grid: Tensor, teacher_grid: Tensor, num_heads: int, temp: float
) -> Tensor:
    """See `spatial_relation_loss_reference`; features are sampled first and related afterwards.

    Sampling is linear, so both are the same. No relation is stored for the backward pass.
    """
    with torch.no_grad():
        target = relation_target(spatial_relation(sample_patches(teacher, teacher_grid), num_heads), temp)
    return _cross_entropy_of_products(target, _spatial_rows(sample_patches(student, student_grid), num_heads))


def channel_relation_loss_reference(student: Tensor, target: Tensor, scale: float) -> Tensor:
    """Compute the mean over images and rows of H(target, softmax(R_s)), a scalar.

    R_s is the `channel_relation` of the student's tokens [..., N, D]; the target holds the teacher's distributions
    [..., D, D], which take no gradient.
    """
    return soft_cross_entropy(target.detach(), channel_relation(student, scale)).mean()


@fast_path_of(channel_relation_loss_reference)
def channel_relation_loss(student: Tensor, target: Tensor, scale: float) -> Tensor:
    """See `channel_relation_loss_reference`; no relation of the student is stored for the backward pass."""
    return _cross_entropy_of_products(target, _channel_rows(student, scale))


def _spatial_rows(tokens: Tensor, num_heads: int) -> Tensor:
    """Return rows [..., H, N, d] of tokens [..., N, D], scaled so that their products are the relation."""
    heads = tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)
    return heads * heads.shape[-1] ** -0.25


def _channel_rows(tokens: Tensor, scale: float) -> Tensor:
    """Return rows [..., D, N] of tokens [..., N, D], scaled so that their products are the relation."""
    return tokens.mT / scale


def _products(rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.mT


def _cross_entropy_of_products(target: Tensor, rows: Tensor) -> Tensor:
    """Compute `soft_cross_entropy(target, rows @ rows.mT).mean()` and its gradient for rows [..., R, C] at once.

    With S = (softmax(X X^T) - target) / number of rows, the gradient is (S + S^T) X, as small as the rows themselves,
    while autograd would store three tensors [..., R, R] for each pair of views until the backward pass.
    """
    gradient = None
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        relation = rows @ rows.mT
        loss = soft_cross_entropy(target, relation).mean()
        if rows.requires_grad:
            slope = relation.softmax(-1).sub_(target).div_(target[..., 0].numel())
            gradient = slope @ rows + slope.mT @ rows
    return attach_gradients(loss, [rows], [gradient])


def _crop_grid(x: Tensor, y: Tensor, boxes: Tensor) -> Tensor:
    """Convert x [..., c] and y [..., r] in pixels of the image to a grid [..., r, c, 2] of the crop."""
    left, top, width, height, flipped = boxes.unsqueeze(-2).unbind(-1)
    x, y = 2 * (x - left) / width - 1, 2 * (y - top) / height - 1
    x = torch.where(flipped > 0.5, -x, x)
    return torch.stack(torch.broadcast_tensors(x.unsqueeze(-2), y.unsqueeze(-1)), -1)


def _bilinear_weights(coordinates: Tensor, side: int) -> Tensor:
    """Return bilinear weights [..., side] of a side's patches at coordinates [...] in [-1, 1]; all 0 far outside."""
    positions = ((coordinates + 1) * side - 1) / 2  # patch i has its centre at i
    centres = torch.arange(side, device=coordinates.device, dtype=coordinates.dtype)
    return (1 - (positions.unsqueeze(-1) - centres).abs()).clamp(min=0)
