"""Moving average of the teacher's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from selfpatch.core.distributed import all_reduce_mean
from selfpatch.models.layers.deferred_state import DeferredState


class Center(DeferredState):
    """Moving average of the teacher's logits, subtracted from them against collapse (DINO, arXiv 2104.14294, eq. 4).

    Attributes:
        center: [K], 0 at first.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))
        self._means: list[Tensor] = []

    @torch.no_grad()
    def accumulate(self, mean_logits: Tensor) -> None:
        """Collect the mean logits [K] of one micro-batch of this process."""
        self._means.append(mean_logits)

    def update(self) -> None:
        """Move the centre towards the mean logits of the global batch."""
        if self._means:
            mean = all_reduce_mean(torch.stack(self._means).mean(0))
            self.center.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self.discard()

    def discard(self) -> None:
        """Forget the mean logits of a failed step."""
        self._means = []
