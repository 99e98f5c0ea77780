"""Patch features in a byte per principal component, of which cosines are computed in the browser."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfpatch.visualization.colours import principal_components

LEVELS = 127
"""Largest code; the codes of a patch are symmetric around 0."""
TESTED_PATCHES = 256
"""Number of patches, evenly spread, whose cosines to all patches are compared with the exact ones."""


@dataclass(frozen=True)
class QuantisedFeatures:
    """Unit features of M patches as int8 codes of m principal components, and how far cosines are from exact ones.

    A feature is f = mu + r, with the mean mu of all patches. The cosine of two patches is

        f . g = |mu|^2 + mu . r_f + mu . r_g + r_f . r_g

    The first three terms are kept in float32; the last one is computed from codes, r = scale * code. The mean of many
    networks is long and the same for all patches: quantising what remains keeps its small differences.
    """

    codes: Tensor
    """Codes [M, m], int8, components in descending order of variance."""
    scales: Tensor
    """Value of code 1 of each patch, [M] float32."""
    offsets: Tensor
    """Product mu . r of each patch, [M] float32."""
    mean_square: float
    """Squared length of the mean, |mu|^2."""
    rms_error: float
    """Root mean square of the difference between cosines and exact ones."""
    max_error: float
    """Largest difference; both over `TESTED_PATCHES` patches and all others."""


def quantise(features: Tensor, components: int) -> QuantisedFeatures:
    """Reduce unit features [M, D] to principal components, at most D, and quantise these to int8, patch by patch."""
    exact = features.double()
    mean = exact.mean(0)
    kept, _ = principal_components(exact, min(components, exact.shape[1]))  # [M, m]
    scales = (kept.abs().amax(1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (kept / scales[:, None]).round().to(torch.int8)
    scales, offsets, square = scales.float(), ((exact - mean) @ mean).float(), float(mean @ mean)
    tested = torch.linspace(0, len(exact) - 1, min(TESTED_PATCHES, len(exact))).round().long()
    error = cosines(codes, scales, offsets, square, tested) - exact[tested] @ exact.T
    return QuantisedFeatures(
        codes, scales, offsets, square, float(error.square().mean().sqrt()), float(error.abs().max())
    )


def cosines(codes: Tensor, scales: Tensor, offsets: Tensor, mean_square: float, queries: Tensor) -> Tensor:
    """Return the cosines [Q, M] float64 of the patches `queries` [Q] with all patches, as the page computes them.

    That of a patch with itself is 1, which components that were left out do not change.
    """
    rest = codes.double() * scales[:, None]
    found = mean_square + offsets[queries, None] + offsets + rest[queries] @ rest.T
    found[torch.arange(len(queries)), queries] = 1
    return found
