"""State that changes once a training step: centres, queues, running statistics."""

from __future__ import annotations

from torch import nn


class StepState(nn.Module):
    """State that changes once a training step, after all its micro-batches, the same on every process."""

    def commit(self) -> None:
        """Takes in what the micro-batches of the step brought."""
        raise NotImplementedError

    def discard(self) -> None:
        """Forgets what the micro-batches of a failed step brought."""
        raise NotImplementedError
