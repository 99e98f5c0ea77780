"""State that changes once a training step: centres, queues, running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DeferredState(nn.Module):
    """State that changes once a training step, after all its micro-batches, the same on every process."""

    def update(self) -> None:
        """Takes in what the micro-batches of the step brought."""
        raise NotImplementedError

    def discard(self) -> None:
        """Forgets what the micro-batches of a failed step brought."""
        raise NotImplementedError

    def changing(self) -> list[Tensor]:
        """The tensors that `update` changes: the buffers, unless a state says otherwise."""
        return list(self.buffers(recurse=False))

    @torch.no_grad()
    def update_where(self, ok: Tensor) -> None:
        """`update` where the step was `ok`, a bool on the device, else `discard`; the device is not waited for."""
        before = [tensor.clone() for tensor in self.changing()]
        self.update()
        for tensor, old in zip(self.changing(), before, strict=True):
            torch.where(ok, tensor, old, out=tensor)
