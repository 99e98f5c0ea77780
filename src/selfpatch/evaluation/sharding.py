"""Shares of an evaluation that each process computes; one process has all of it.

::

    for i in share_of(n):                     consecutive items, so that joining by rank restores the order
        values.append(measure(item[i]))
    values = distributed.gather(values)       all of them, on every process

    images = order[share_of_batch(batch_size)]          this process's part of a global batch
    data_parallel(network, loss)(images).backward()     gradients of the mean over the global batch
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from selfpatch.core.distributed import averaging_gradients, is_distributed, rank, world_size
from selfpatch.core.text import counted
from selfpatch.models.backbones.global_batch import use_global_batch


def share_of(num_items: int) -> range:
    """Return the numbers of this process's items, of 0, ..., `num_items` - 1; shares differ by one item at most.

    The main process, which reports progress, has a largest share.
    """
    first, last = (-(-num_items * number // world_size()) for number in (rank(), rank() + 1))
    return range(first, last)


def share_of_batch(batch_size: int) -> slice:
    """Return this process's part of a global batch.

    Raises:
        ValueError: the number of processes does not divide the batch.
    """
    size, left = divmod(batch_size, world_size())
    if left:
        multiple = max(1, size) * world_size()
        raise ValueError(
            f"a batch of {counted(batch_size, 'image')} cannot be divided among {world_size()} processes; use a "
            f"multiple of {world_size()} such as {multiple}, or another number of processes"
        )
    return slice(size * rank(), size * (rank() + 1))


def data_parallel(trained: nn.Module, loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """Return the loss of this process's part of a batch, whose gradients are averaged over processes.

    On several processes, the module's batch norms, dropout and drop path are changed in place: they act on the global
    batch. `loss` is a mean over samples that all count the same, or normalises by means over processes.
    """
    if not is_distributed():
        return loss
    use_global_batch(trained)
    # A decoder need not read every layer of its backbone, e.g. not the last norm; the first step shows which.
    return averaging_gradients(_Loss(trained, loss), static_graph=True)


class _Loss(nn.Module):
    """A loss as a module around what it trains, as DDP takes it."""

    def __init__(self, trained: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.trained, self._loss = trained, loss

    def forward(self, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        return self._loss(batch)
