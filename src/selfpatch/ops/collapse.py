"""Collapse meters: entropies of the teacher's distributions and the effective rank of features.

Self-distillation has two trivial solutions (DINO, arXiv 2104.14294, section 5.3): every image gets the uniform
distribution, or every image gets the same prototype. Other losses can lose dimensions of the features.
"""

import math

import torch
from torch import Tensor

MAX_ROWS = 1024
"""Number of rows that a meter reads at most, so that its cost does not grow with the batch."""


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats of distributions [..., K] -> [...], with 0 log 0 = 0."""
    return torch.special.entr(probabilities).sum(dim=-1)


@torch.no_grad()
def distribution_meters(logits: Tensor, temp: float, center: Tensor) -> dict[str, Tensor]:
    """Measure how sharp and how varied the teacher's distributions softmax((logits - center) / temp) are.

    Logits are [n, K] of any floating type, of which at most `MAX_ROWS` evenly spaced rows are read; the centre is [K].

    Returns:
        Scalars in nats:
            entropy: mean over the rows of the entropy of each; near `max_entropy` when all are uniform.
            mean_entropy: entropy of the mean distribution; near 0 when all rows choose one prototype; at most `entropy`
                + log n.
            max_entropy: log K, to normalise the two.

    Raises:
        ValueError: the logits are not a matrix with rows.
    """
    rows = _sample_rows(logits)
    probabilities = ((rows - center.float()) / temp).softmax(dim=-1)  # [n, K]
    return {
        "entropy": entropy(probabilities).mean(),
        "mean_entropy": entropy(probabilities.mean(dim=0)),
        "max_entropy": probabilities.new_tensor(math.log(probabilities.shape[1])),
    }


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank: exp of the entropy of the normalised singular values, from 1 to min(n, D).

    RankMe (Garrido, Balestriero, Najman, LeCun; ICML 2023; arXiv 2210.02885), with 0 log 0 = 0 in place of its epsilon.
    Following RankMe, features are not centred, so that constant features have rank 1.

    Features are [n, D] of any floating type, of which at most `MAX_ROWS` evenly spaced rows are read. The rank of
    features that are all zero is 1; it is NaN if any is not finite.

    Raises:
        ValueError: the features are not a matrix with rows.
    """
    rows = _sample_rows(features)
    if not rows.isfinite().all():  # the decomposition would raise, and a meter must not end a run
        return rows.new_tensor(math.nan)
    # The square roots of the Gram matrix's eigenvalues would carry an error of 3e-4 of the largest in float32, which
    # hundreds of dimensions add up to a rank well above 1 for constant features.
    singular_values = torch.linalg.svdvals(rows)
    total = singular_values.sum().clamp(min=torch.finfo(rows.dtype).tiny)
    return entropy(singular_values / total).exp()


def _sample_rows(matrix: Tensor) -> Tensor:
    """Return at most `MAX_ROWS` evenly spaced rows of [n, D], in float32."""
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"got a tensor of shape {tuple(matrix.shape)}; a matrix [n, D] with n, D >= 1 is needed")
    n = matrix.shape[0]
    if n > MAX_ROWS:
        matrix = matrix[torch.arange(MAX_ROWS, device=matrix.device) * n // MAX_ROWS]
    return matrix.float()
