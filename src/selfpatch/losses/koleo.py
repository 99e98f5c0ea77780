"""KoLeo: features spread over the sphere (Sablayrolles et al., arXiv 1806.03198; DINOv2, arXiv 2304.07193)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.core.distributed import all_gather_with_gradient
from selfpatch.core.text import counted

EPSILON = 1e-8
"""Added to norms, differences and distances, as in DINOv2's released code."""


@settings
class KoLeoConfig:
    """Settings of KoLeo."""

    group_size: Annotated[int, Ge(2)] | None = None
    """Number of images of the batch among which a feature's nearest other one is searched: DINOv3 uses 16, DINOv2 the
    images of one GPU. Defaults to the images of all processes."""


class KoLeoLoss(nn.Module):
    """Negative logarithm of the distance to the nearest other feature: the differential entropy of the batch.

        y = x / |x|
        loss = - mean over i of log( |y_i - y_n(i)| ),   n(i) = the other feature of i's group with the largest cosine

    DINOv2 applies it to the student's CLS tokens, each global view apart, with a weight of 0.1. Its batch is that of
    one process. Here it is that of all processes so that, as in groups of one size, their number does not matter.

    Example:
        >>> criterion = KoLeoLoss()
        >>> loss = dino_loss + 0.1 * criterion(student_cls)    # [V, B, D], before the head

    Args:
        config: size of a group.
    """

    def __init__(self, config: KoLeoConfig = KoLeoConfig()) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """Return the loss, a scalar: the sum over the views.

        Args:
            features: [B, D] of one view, or [V, B, D] of several, of any norm; computed in float32.

        Raises:
            ValueError: there is only one image, or the images do not fill the groups.
        """
        with torch.autocast(features.device.type, enabled=False):
            y = self._groups(F.normalize(features.float(), dim=-1, eps=EPSILON))  # [..., groups, group size, D]
            nearest = nearest_others(y).unsqueeze(-1)
            distance = F.pairwise_distance(y, y.take_along_dim(nearest, -2), eps=EPSILON)
        return -(distance + EPSILON).log().mean((-2, -1)).sum()

    def _groups(self, y: Tensor) -> Tensor:
        if (size := self.config.group_size) is not None:
            if y.shape[-2] % size:
                raise ValueError(
                    f"koleo.group_size is {size}, which does not divide the {counted(y.shape[-2], 'image')} of a "
                    "process and micro-batch; use a divisor, or leave it out"
                )
            return y.unflatten(-2, (-1, size))
        y = all_gather_with_gradient(y).movedim(0, -3).flatten(-3, -2).unsqueeze(-3)
        if y.shape[-2] < 2:
            raise ValueError("KoLeo compares images of a batch, but there is only one; use a batch size of 2 or more")
        return y


@torch.no_grad()
def nearest_others(y: Tensor) -> Tensor:
    """Return the index of the other feature with the largest cosine, [..., B] int64, of unit features [..., B, D]."""
    cosine = y @ y.mT
    cosine.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return cosine.argmax(-1)
