"""Sinkhorn-Knopp: soft assignments of samples to prototypes that use every prototype equally (SwAV, arXiv 2006.09882).

The codes of a batch maximise their similarity to the scores plus epsilon times their entropy, among the assignments in
which each sample counts as much as any other and each prototype gets as much as any other (section 3.1, eq. 3 to 5).
"""

import torch
from torch import Tensor

from selfpatch.core.distributed import all_gather, all_reduce_sum
from selfpatch.core.reference import fast_path_of
from selfpatch.core.text import counted
from selfpatch.ops.cross_entropy import Scores, cast_prototypes, chunks

KEPT_LOGITS = 2**26
"""Number of logits that are kept between iterations; more are computed anew in each, so that they never all exist."""


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
            f"got epsilon {epsilon} and {counted(iterations, 'iteration')}; use epsilon > 0, e.g. 0.05, and 1 or more"
        )
    scores = scores.float() / epsilon
    samples = scores.new_zeros(len(scores), 1)  # [b, 1] logarithm of each sample's factor
    for _ in range(iterations):
        prototypes = -all_gather((scores + samples).logsumexp(0)).logsumexp(0)  # [K] of each prototype's factor
        samples = -(scores + prototypes).logsumexp(1, keepdim=True)
    return (scores + prototypes + samples).exp()


@torch.no_grad()
def sinkhorn_center_reference(scores: Scores, temp: float, iterations: int = 3, masses: Tensor | None = None) -> Tensor:
    """Compute the centre whose subtraction makes a softmax of Sinkhorn-Knopp (DINOv2, arXiv 2304.07193, section 4).

        softmax((logits - center) / temp) = sinkhorn(logits, temp, iterations)

    The last step of an iteration scales each sample to sum to 1, as a softmax does, so that only the factors of the
    prototypes are left: center[k] = -temp * log(factor[k]). Losses that take a centre need nothing else.

    Args:
        scores: [..., K] of this process's samples, which may be none; all samples of all processes are assigned.
        temp: softmax temperature, epsilon of `sinkhorn`.
        iterations: number of iterations, 1 or more.
        masses: [...] mass of each sample; samples of mass 0 are left out. If None, all have 1.

    Returns:
        Centre [K] in float32, the same on every process.
    """
    logits = scores.logits().flatten(0, -2) / temp
    weights = logits.new_zeros(len(logits), 1) if masses is None else masses.flatten()[:, None].float().log()
    samples = weights
    for _ in range(iterations):
        prototypes = -all_gather((logits + samples).logsumexp(0)).logsumexp(0)
        samples = weights - (logits + prototypes).logsumexp(1, keepdim=True)
    return -temp * prototypes


@fast_path_of(sinkhorn_center_reference)
@torch.no_grad()
def sinkhorn_center(scores: Scores, temp: float, iterations: int = 3, masses: Tensor | None = None) -> Tensor:
    """See `sinkhorn_center_reference`; samples come in chunks, so that no [..., K] tensor of all of them exists."""
    rows = scores.bottleneck.flatten(0, -2) / temp
    weights = torch.ones(len(rows), device=rows.device) if masses is None else masses.flatten().float()
    keys = cast_prototypes(rows, scores.prototypes)
    parts = [(rows[chunk].to(keys.dtype), weights[chunk]) for chunk in chunks(len(rows), keys)]
    with torch.autocast(rows.device.type, enabled=False):
        keep = len(rows) * len(keys) <= KEPT_LOGITS
        kept = [(part @ keys.T).float() for part, _ in parts] if keep else None
        factors = torch.zeros(len(keys), device=rows.device)  # [K] logarithms
        for iteration in range(iterations):
            totals = torch.full_like(factors, 0.0 if iteration else -torch.inf)  # [K] mass of each prototype
            for number, (part, weight) in enumerate(parts):
                logits = (part @ keys.T).float() if kept is None else kept[number]
                if iteration:  # no prototype's mass underflows on all processes: it was 1 before samples were scaled
                    totals += weight @ (logits + factors).softmax(1)
                else:
                    totals = torch.logaddexp(totals, (logits + weight.log()[:, None]).logsumexp(0))
            factors = factors - all_reduce_sum(totals).log() if iteration else -all_gather(totals).logsumexp(0)
    return -temp * factors
