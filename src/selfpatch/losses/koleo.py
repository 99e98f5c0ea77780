"""KoLeo: features spread over the sphere (Sablayrolles et al., arXiv 1806.03198; DINOv2, arXiv 2304.07193)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-8
"""Added to norms, differences and distances, as in DINOv2's released code."""


class KoLeoLoss(nn.Module):
    """Negative logarithm of the distance to the nearest other feature: the differential entropy of the batch.

        y = x / |x|
        loss = - mean over i of log( |y_i - y_n(i)| ),   n(i) = the other feature with the largest cosine

    DINOv2 applies it to the student's CLS tokens, each global view apart, with a weight of 0.1. The batch is that of
    this process, as in the released code.

    Example:
        >>> criterion = KoLeoLoss()
        >>> loss = dino_loss + 0.1 * criterion(student_cls)    # [V, B, D], before the head
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the loss, a scalar: the sum over the views.

        Args:
            features: [B, D] of one view, or [V, B, D] of several, of any norm; computed in float32.

        Raises:
            ValueError: there is only one image.
        """
        if features.shape[-2] < 2:
            raise ValueError("KoLeo compares images of a batch, but there is only one; use a batch size of 2 or more")
        with torch.autocast(features.device.type, enabled=False):
            y = F.normalize(features.float(), dim=-1, eps=EPSILON)
            nearest = nearest_others(y).unsqueeze(-1)  # [..., B, 1]
            distance = F.pairwise_distance(y, y.take_along_dim(nearest, -2), eps=EPSILON)
        return -(distance + EPSILON).log().mean(-1).sum()


@torch.no_grad()
def nearest_others(y: Tensor) -> Tensor:
    """Return the index of the other feature with the largest cosine, [..., B] int64, of unit features [..., B, D]."""
    cosine = y @ y.mT
    cosine.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return cosine.argmax(-1)
