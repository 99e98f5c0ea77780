"""State that changes once a training step: centres, queues, running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepState(nn.Module):
    """State that changes once a training step, after all its micro-batches, the same on every process."""

    def commit(self) -> None:
        """Takes in what the micro-batches of the step brought."""
        raise NotImplementedError

    def discard(self) -> None:
        """Forgets what the micro-batches of a failed step brought."""
        raise NotImplementedError

    def changing(self) -> list[Tensor]:
        """The tensors that `commit` changes: the buffers, unless a state says otherwise."""
        return list(self.buffers(recurse=False))

    @torch.no_grad()
    def commit_where(self, ok: Tensor) -> None:
        """`commit` where the step was `ok`, a bool on the device, else `discard`; the device is not waited for."""
        before = [tensor.clone() for tensor in self.changing()]
        self.commit()
        for tensor, old in zip(self.changing(), before, strict=True):
            torch.where(ok, tensor, old, out=tensor)
