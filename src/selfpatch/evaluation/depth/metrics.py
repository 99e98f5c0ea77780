"""Errors of depth maps: which pixels count, scale and shift, and the metrics of Eigen et al. (arXiv 1406.2283)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfpatch.evaluation.depth.dataset import NYU_SIZE

EIGEN_ROWS, EIGEN_COLUMNS = (45, 471), (41, 601)
"""Rows and columns of NYU's images of 480 x 640 pixels that are scored (Eigen et al.)."""
METRICS = ("a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel", "mae")


def eigen_mask(height: int, width: int) -> Tensor:
    """Return the pixels that are scored on NYU, bool [H, W]; the window is scaled to other sizes and truncated."""
    (top, bottom), (left, right) = (
        (low * side // full, high * side // full)
        for (low, high), side, full in zip((EIGEN_ROWS, EIGEN_COLUMNS), (height, width), NYU_SIZE, strict=True)
    )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def fit_scale_and_shift(prediction: Tensor, depth: Tensor) -> Tensor:
    """Return the scale and shift [2] that bring predictions [n] nearest to depths [n], by least squares."""
    columns = torch.stack([prediction, torch.ones_like(prediction)], dim=1).double()
    return torch.linalg.lstsq(columns, depth.double()[:, None]).solution[:, 0].to(prediction.dtype)


def depth_metrics(
    prediction: Tensor, depth: Tensor, valid: Tensor, *, limits: tuple[float, float], align: bool = False
) -> dict[str, float] | None:
    """Return the errors of one depth map [H, W] in metres, or None if no pixel counts.

    a1, a2, a3 are the shares of pixels whose ratio to the truth is below 1.25, 1.25^2, 1.25^3.

    Args:
        prediction: predicted depth; clamped to the limits.
        depth: true depth.
        valid: bool; pixels that count if their depth also lies between the limits, exclusive.
        limits: smallest and largest depth.
        align: apply `fit_scale_and_shift` first.
    """
    low, high = limits
    valid = valid & (depth > low) & (depth < high)
    if not valid.any():
        return None
    found, truth = prediction[valid], depth[valid]
    if align:
        scale, shift = fit_scale_and_shift(found, truth)
        found = scale * found + shift
    found, truth = found.clamp(low, high).double(), truth.double()
    ratio, error, log_error = torch.maximum(found / truth, truth / found), found - truth, found.log() - truth.log()
    values = [(ratio < 1.25**power).double().mean() for power in (1, 2, 3)]
    values += [
        (error.abs() / truth).mean(),
        error.square().mean().sqrt(),
        (found.log10() - truth.log10()).abs().mean(),
        log_error.square().mean().sqrt(),
        100 * log_error.var(correction=0).sqrt(),
        (error.square() / truth).mean(),
        error.abs().mean(),
    ]
    return dict(zip(METRICS, torch.stack(values).tolist(), strict=True)) | {"pixels": int(valid.sum())}


def mean_metrics(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over images, each of which weighs the same."""
    return {name: sum(one[name] for one in values) / len(values) for name in values[0]}
