"""Exponential moving average (EMA) of a module's parameters: how a teacher follows its student."""

import torch
from torch import Tensor, nn

from selfpatch.core.distributed import local_shard
from selfpatch.core.reference import fast_path_of


@torch.no_grad()
def ema_update_reference(average: nn.Module, source: nn.Module, momentum: float, ok: Tensor | None = None) -> None:
    """Compute `ema_update` one parameter after the other."""
    for mean, new in _unshared(average, source):
        before = None if ok is None else mean.clone()
        mean.mul_(momentum).add_(new, alpha=1 - momentum)
        if ok is not None and before is not None:
            torch.where(ok, mean, before, out=mean)


@fast_path_of(ema_update_reference)
@torch.no_grad()
def ema_update(average: nn.Module, source: nn.Module, momentum: float, ok: Tensor | None = None) -> None:
    """Set the parameters of `average` to momentum * average + (1 - momentum) * source; its buffers stay.

    Args:
        average: the teacher.
        source: the student, with the same parameters. Frozen ones may be shared, and stay.
        momentum: weight of the average's own parameters.
        ok: bool scalar on the device; all parameters stay where it is False. If None, they move.
    """
    pairs = _unshared(average, source)
    if not pairs:
        return
    means, new = ([pair[i] for pair in pairs] for i in range(2))
    if ok is None:
        torch._foreach_lerp_(means, new, 1 - momentum)
    else:
        torch._foreach_lerp_(means, new, [ok * (1 - momentum)] * len(means))


def _unshared(average: nn.Module, source: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of parameters that are not one and the same; of sharded ones, this process's parts."""
    pairs = zip(average.parameters(), source.parameters(), strict=True)
    return [(local_shard(mean), local_shard(new)) for mean, new in pairs if mean is not new]
