"""Queue of features of earlier steps and of the current batch."""

import torch
from torch import Tensor

from selfpatch.core.distributed import all_gather, rows_of_global_draw
from selfpatch.models.layers.deferred_state import DeferredState


class FeatureQueue(DeferredState):
    """The newest `size` features, those of the current batch among them; empty at first.

    In contrast to `MemoryBank`, which holds earlier batches alone, a batch may meet its own features.

    Attributes:
        features: [size, E], newest first.
        num_filled: number of features so far, an int64 scalar; later rows are 0.
    """

    features: Tensor
    num_filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("num_filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def accumulate(self, features: Tensor) -> None:
        """Collect features [n, E] of one micro-batch of this process; n is the same on every process."""
        self.accumulated.append(all_gather(features.detach().float()).flatten(0, 1))

    def push(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Collect features as `accumulate` does.

        Returns:
            Features [size, E] and their number, as they will be after the step if no other micro-batch follows.
        """
        self.accumulate(features)
        return self._with(self.accumulated[-1:])

    def update(self) -> None:
        """Take in the features of the step, the last micro-batch first, and drop the oldest."""
        features, num_filled = self._with(self.accumulated[::-1])
        self.features.copy_(features)
        self.num_filled.copy_(num_filled)
        self.discard()

    @torch.no_grad()
    def _with(self, newest: list[Tensor]) -> tuple[Tensor, Tensor]:
        rows = torch.cat([*newest, self.features])
        size = len(self.features)
        return rows[:size], (self.num_filled + len(rows) - size).clamp(max=size)


def draw_patches(
    patches: Tensor, count: int, generator: torch.Generator | None = None, preferred: Tensor | None = None
) -> Tensor:
    """Draw `count` random patches of each image, [B * count, E]; fewer if the images have fewer.

    Processes draw those of the global batch, from a generator in the same state on each.

    Args:
        patches: [B, N, E].
        count: number of patches of an image.
        generator: source of the draws, on the tensors' device. If None, torch's own.
        preferred: [B, N] bool, True for patches that are drawn before any others.
    """
    B, N, _ = patches.shape
    ranks = rows_of_global_draw(lambda rows: torch.rand(rows, N, generator=generator, device=patches.device), B)
    if preferred is not None:
        ranks = ranks + preferred
    chosen = ranks.topk(min(count, N)).indices  # [B, count]
    return patches.take_along_dim(chosen.unsqueeze(-1), 1).flatten(0, 1)
