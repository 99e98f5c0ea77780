"""Artefact tokens: patches of far higher norm than the others, which hold no local information (arXiv 2309.16588)."""

import torch
from torch import Tensor

DEVIATIONS = 8.0
"""Number of robust standard deviations above the median from which a norm is that of an outlier."""
RATIO = 2.0
"""Number of medians that the norm of an outlier exceeds too, so that a narrow distribution has none."""


def outlier_share(tokens: Tensor, deviations: float = DEVIATIONS, ratio: float = RATIO) -> Tensor:
    """Return the share of tokens [..., D] whose norm is an outlier, a scalar.

        n = norms, m = median(n), s = 1.4826 * median(|n - m|)
        outlier: n > max(m + deviations * s, ratio * m)

    The paper cuts at a norm of 150 for DINOv2's ViT-g, by hand, between two modes: a tenth as large for most tokens as
    for the 2 % of artefacts. Median and absolute deviation (s is the standard deviation of a normal distribution) find
    such a cut for any network, as long as less than half of the tokens are artefacts. Norms that are not finite count
    as none.
    """
    norms = tokens.float().norm(dim=-1).flatten()
    median = norms.nanmedian()
    deviation = 1.4826 * (norms - median).abs().nanmedian()
    return (norms > torch.maximum(median + deviations * deviation, ratio * median)).float().mean()
