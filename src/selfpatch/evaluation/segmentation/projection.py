"""Standardised patch features, reduced to their principal components, without ever holding all of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfpatch.core.distributed import all_reduce_sum

RELATIVE_ZERO = 1e-10
"""Share of the largest variance below which a direction counts as constant."""


@dataclass(frozen=True)
class Projection:
    """Linear map of features: (x - mean) @ weight."""

    mean: Tensor  # [D]
    weight: Tensor  # [D, d]
    rank: int
    """Number of directions in which the features vary."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the reduced features [..., d] of features [..., D]."""
        return (features - self.mean) @ self.weight


def fit_projection(features: Iterable[Tensor], dim: int, components: int | None, *, standardise: bool) -> Projection:
    """Fit a projection to features that are seen once, of all processes.

        with `standardise`:  each dimension is divided by its standard deviation (1 if it is constant)
        with `components`:   the eigenvectors of the largest eigenvalues of the covariance matrix (PCA, not whitened)

    Sums of x and x x^T are kept in float64, [D] and [D, D], whatever the number of features.

    Args:
        features: blocks [n, D], at least one in all.
        dim: width D.
        components: width d, at most D; all dimensions are kept as they are if None.
        standardise: divide by standard deviations first.
    """
    count, total, products = (torch.zeros(shape, dtype=torch.float64) for shape in ((1,), (dim,), (dim, dim)))
    device = torch.device("cpu")
    for block in features:
        device = block.device
        x = block.cpu().double()  # moved first, because MPS has no float64
        count += len(x)
        total += x.sum(0)
        products += x.T @ x
    count, total, products = (all_reduce_sum(value) for value in (count, total, products))
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    constant = variance <= RELATIVE_ZERO * variance.max()
    scale = torch.where(constant, 1.0, variance.sqrt().reciprocal()) if standardise else torch.ones_like(variance)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance * torch.outer(scale, scale))  # in ascending order
    rank = int((eigenvalues > RELATIVE_ZERO * eigenvalues[-1].clamp_min(1e-300)).sum())
    weight = torch.diag(scale)
    if components is not None:
        weight = weight @ eigenvectors[:, -components:].flip(1)
    return Projection(mean.float().to(device), weight.float().to(device), rank)
