"""Sinkhorn-Knopp: soft assignments of samples to prototypes that use every prototype equally (SwAV, arXiv 2006.09882).

The codes of a batch maximise their similarity to the scores plus epsilon times their entropy, among the assignments in
which each sample counts as much as any other and each prototype gets as much as any other (section 3.1, eq. 3 to 5).
"""

import torch
from torch import Tensor

from selfpatch.core.distributed import all_gather


@torch.no_grad()
def sinkhorn_reference(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Compute codes as the paper does, on one process; arguments as for `sinkhorn`.

        Q = exp(scores / epsilon)
        repeat:
            for each prototype k:  Q[:, k] /= K * sum of Q[:, k]
            for each sample b:     Q[b, :] /= B * sum of Q[b, :]
        return B * Q

    The exponential overflows in float32 if a score is above 88 epsilon.
    """
    B, K = scores.shape
    codes = (scores / epsilon).exp()
    codes /= codes.sum()
    for _ in range(iterations):
        codes /= K * codes.sum(0, keepdim=True)
        codes /= B * codes.sum(1, keepdim=True)
    return B * codes


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Compute the codes of this process's samples; `sinkhorn_reference` holds the loop.

    Every step of the loop scales a prototype's column or a sample's row, so only the logarithms of these factors
    change. Factors common to all entries (B, K and the total) cancel when the samples are scaled next. Sums are formed
    by logsumexp, which does not overflow. Sums of prototypes need one small all-gather per iteration.

    Scores are [b, K] similarities of this process's samples to the prototypes. A small epsilon assigns each sample to
    nearly one prototype. The result is [b, K] float32 without gradient; each sample's sums to 1.

    Raises:
        ValueError: epsilon is not positive, or there is no iteration.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(
            f"got epsilon {epsilon} and {iterations} iterations; use epsilon > 0, e.g. 0.05, and 1 or more"
        )
    scores = scores.float() / epsilon
    samples = scores.new_zeros(len(scores), 1)  # [b, 1] logarithm of each sample's factor
    for _ in range(iterations):
        prototypes = -all_gather((scores + samples).logsumexp(0)).logsumexp(0)  # [K] of each prototype's factor
        samples = -(scores + prototypes).logsumexp(1, keepdim=True)
    return (scores + prototypes + samples).exp()
