"""Memory bank of keys from earlier batches, which serve as negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.distributed import all_gather
from selfpatch.models.layers.deferred_state import DeferredState


def check_bank_size(name: str, size: int, batch_size: int) -> None:
    """Raise ValueError if whole batches do not fill a memory bank, as the released code of MoCo and MoBY does."""
    if size % batch_size:
        nearest = max(1, round(size / batch_size)) * batch_size
        raise ValueError(
            f"{name} is {size}, which the batch of {batch_size} images does not divide; use a multiple, e.g. {nearest}"
        )


class MemoryBank(DeferredState):
    """The newest `size` keys of earlier steps, first in, first out (MoCo, arXiv 1911.05722, section 3.2).

    Attributes:
        keys: [size, E] normalised; random at first.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def accumulate(self, keys: Tensor) -> None:
        """Collect the keys [n, E] of one micro-batch of this process; n is the same on every process."""
        self.accumulated.append(keys.detach().float())

    @torch.no_grad()
    def update(self) -> None:
        """Replace the oldest keys by those of the step, in the order of the global batch.

        That order is by micro-batch, then by process. Of a step with more keys than the bank, the last ones stay.
        """
        if self.accumulated:
            gathered = torch.stack([all_gather(keys) for keys in self.accumulated])  # [micro-batches, processes, n, E]
            new = gathered.flatten(0, 2)[-len(self.keys) :]
            indices = (self.pointer + torch.arange(len(new), device=new.device)) % len(self.keys)
            self.keys[indices] = new
            self.pointer.copy_((self.pointer + len(new)) % len(self.keys))
        self.discard()
