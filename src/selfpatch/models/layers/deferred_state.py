"""State that changes once per training step: centres, memory banks, running statistics."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class DeferredState(nn.Module):
    """State that changes once per training step, after all micro-batches and identically on every process.

    A subclass collects what it needs of each forward pass in `accumulated`; `update` applies and then discards it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accumulated: list[Any] = []

    def update(self) -> None:
        """Apply what the micro-batches of the finished step accumulated."""
        raise NotImplementedError

    def discard(self) -> None:
        """Forget what the micro-batches accumulated, as after a failed step."""
        self.accumulated = []

    def changing(self) -> list[Tensor]:
        """Return the tensors that `update` changes: the module's own buffers, unless a subclass returns others."""
        return list(self.buffers(recurse=False))

    @torch.no_grad()
    def update_where(self, ok: Tensor) -> None:
        """Update if the step was finite, a bool scalar on the device, otherwise discard, without waiting for it."""
        before = [tensor.clone() for tensor in self.changing()]
        self.update()
        for tensor, old in zip(self.changing(), before, strict=True):
            torch.where(ok, tensor, old, out=tensor)


def deferred_states(module: nn.Module) -> Iterator[DeferredState]:
    """Iterate over all deferred states of a module, itself included."""
    return (part for part in module.modules() if isinstance(part, DeferredState))
