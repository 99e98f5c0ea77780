"""Losses of depth maps: scale-invariant with a variance (SigLoss) and differences of neighbouring errors.

SigLoss: Eigen et al. (arXiv 1406.2283), Lee et al. (arXiv 1907.10326). Gradients: MegaDepth (arXiv 1804.00607). Both in
the form of DINOv2's and DINOv3's depth evaluation.
"""

import torch
from torch import Tensor, nn

from selfpatch.core.distributed import all_reduce_sum, all_reduce_sum_with_gradient

EPSILON = 1e-3
"""Added to depths in metres before the logarithm."""
MEAN_WEIGHT = 0.15
"""Weight of the squared mean error in SigLoss."""
STEPS = (1, 2, 4, 6)
"""Distances in pixels of the maps that the gradient loss compares; the last is 6 and not 8, as released."""


def log_errors(prediction: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Return log(prediction) - log(depth), 0 where a pixel is not valid; all three have one shape."""
    errors = torch.log(prediction.float() + EPSILON) - torch.log(depth.float().clamp(min=0) + EPSILON)
    return torch.where(valid, errors, 0.0)


def sig_loss(
    prediction: Tensor, depth: Tensor, valid: Tensor, *, variance_weight: Tensor | float = 1.0, unbiased: bool = True
) -> Tensor:
    """Return the scale-invariant loss of a batch.

        g = log(prediction) - log(depth)                              of each valid pixel of the batch
        loss = sqrt(variance_weight * variance(g) + 0.15 * mean(g)^2)

    The pixels are those of the global batch. The loss is 0, with gradient 0, if none is valid.

    Args:
        prediction: depth in metres, [B, 1, H, W], positive.
        depth: true depth.
        valid: bool; pixels that count.
        variance_weight: 0 in the first steps, else 1.
        unbiased: divide the variance by n - 1, as DINOv2 and DINOv3, or by n, as Probe3D.
    """
    errors = log_errors(prediction, depth, valid)
    count = all_reduce_sum(valid.sum().float())
    mean = all_reduce_sum_with_gradient(errors.sum()) / count.clamp(min=1)
    deviations = torch.where(valid, errors - mean, 0.0)
    variance = all_reduce_sum_with_gradient(deviations.square().sum()) / (count - int(unbiased)).clamp(min=1)
    inside = variance_weight * variance + MEAN_WEIGHT * mean.square()
    positive = inside > 0  # the root has no gradient at 0
    return torch.where(positive, torch.where(positive, inside, 1.0).sqrt(), 0.0)


def gradient_log_loss(prediction: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Return the loss of differences between neighbours, at four scales of the maps.

        for each step of 1, 2, 4, 6:
            g = (log(prediction) - log(depth))[..., ::step, ::step]
            loss += sum of |g[i] - g[i + 2]| along rows and columns, both valid, / number of valid pixels

    Arguments as for `sig_loss`, of any shape [..., H, W]. DINOv2's released code slices the first two axes of
    [B, 1, H, W], where there is nothing to compare: its loss is always 0.
    """
    errors = log_errors(prediction, depth, valid)
    total = errors.new_zeros(())
    for step in STEPS:
        g, mask = errors[..., ::step, ::step], valid[..., ::step, ::step]
        count = all_reduce_sum(mask.sum().float()).clamp(min=1)
        rows = ((g[..., 2:, :] - g[..., :-2, :]).abs() * (mask[..., 2:, :] & mask[..., :-2, :])).sum()
        columns = ((g[..., 2:] - g[..., :-2]).abs() * (mask[..., 2:] & mask[..., :-2])).sum()
        total = total + all_reduce_sum_with_gradient(rows + columns) / count
    return total


class SigLoss(nn.Module):
    """`sig_loss` without the variance during the first calls, which the released code calls its warm-up.

    Example:
        >>> criterion = SigLoss()
        >>> loss = criterion(prediction, depth, (depth > 0) & (depth <= 10))    # [B, 1, H, W] each

    Args:
        warmup: number of calls without the variance; its count is part of the state.
    """

    calls: Tensor

    def __init__(self, warmup: int = 100) -> None:
        super().__init__()
        self.warmup = warmup
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, prediction: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
        """Return the loss, a scalar; arguments as for `sig_loss`."""
        weight = (self.calls >= self.warmup).float()
        self.calls += 1
        return sig_loss(prediction, depth, valid, variance_weight=weight)
