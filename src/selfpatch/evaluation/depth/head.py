"""Linear head that predicts depth as a mean of bins (AdaBins, arXiv 2011.14141)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OFFSET = 0.1
"""Added to the rectified logits, so that the weights of all bins are positive."""


def bins_to_depth(logits: Tensor, limits: tuple[float, float]) -> Tensor:
    """Return the depth [B, 1, h, w] in metres that logits of bins [B, K, h, w] stand for.

        weights = relu(logits) + 0.1, normalised to a sum of 1
        depth = sum over bins of weight * depth of the bin

    The K depths are evenly spaced, from the first of the limits to the second.
    """
    weights = logits.relu() + OFFSET
    depths = torch.linspace(*limits, logits.shape[1], device=logits.device)
    return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), depths)[:, None]


class DepthHead(nn.Module):
    """Optional batch norm, a 1x1 convolution to bins, optional upsampling, and the mean depth.

    Args:
        dim: width of the features.
        num_bins: number of depths.
        limits: smallest and largest depth, in metres.
        batch_norm: normalise features first.
        upsample: factor by which logits are enlarged (bilinear), as DINOv2 enlarges features before the convolution.
        seed: seed of the weights.
    """

    def __init__(
        self, dim: int, num_bins: int, limits: tuple[float, float], *, batch_norm: bool, upsample: int, seed: int
    ) -> None:
        super().__init__()
        self.limits, self.upsample = limits, upsample
        self.norm = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.to_bins = nn.Conv2d(dim, num_bins, 1)
        nn.init.normal_(self.to_bins.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        assert self.to_bins.bias is not None
        nn.init.zeros_(self.to_bins.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the depth [B, 1, u*h, u*w] in metres, u = upsample, of features [B, D, h, w]."""
        logits = self.to_bins(self.norm(features))
        if self.upsample > 1:  # a linear map commutes with this; logits are narrower than features
            logits = F.interpolate(logits, scale_factor=self.upsample, mode="bilinear")
        return bins_to_depth(logits, self.limits)
