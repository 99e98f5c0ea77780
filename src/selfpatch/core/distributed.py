"""Communication between training processes; on a single process each function is the identity."""

import contextlib
import datetime
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.failures import FailedElsewhere, FailedHere, Stopped, sentence_of
from selfpatch.core.rendezvous import meet
from selfpatch.core.signals import Terminated
from selfpatch.core.torchrun import announced_rank, announced_world_size

T = TypeVar("T")
_stores: list[dist.Store] = []
"""Store of the group that `start` joined: processes exchange a few bytes in it without waiting for one another."""
_failed_first: list[bool] = []
"""One item once this process has failed: True if it was the first of its group."""
MEETING = datetime.timedelta(seconds=10)
"""Time in which a process that fails finds the store of a group that it has not joined."""


def is_distributed() -> bool:
    """Return whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process within its group, from 0."""
    if is_distributed():
        return dist.get_rank()
    return announced_rank() if in_dry_run() else 0  # the processes of a dry run do not meet


def world_size() -> int:
    """Return the number of processes of the group; in a dry run, of the group to be."""
    if is_distributed():
        return dist.get_world_size()
    return announced_world_size() if in_dry_run() else 1


def is_main_process() -> bool:
    """Return whether this process prints and writes files."""
    return rank() == 0


def start(device: str) -> torch.device:
    """Join the process group that torchrun announces, if any, and return this process's device.

    `device` is a name as `find_device` takes it; `cuda` stands for the GPU of the process's own number. In a dry run
    processes do not meet, and the device is checked and not touched.

    Raises:
        ValueError: the device is unknown or not on this machine, or it has fewer GPUs than processes.
    """
    chosen = find_device(device)
    if in_dry_run():
        return chosen
    if chosen.type == "cuda":
        index = int(os.environ.get("LOCAL_RANK", "0")) if chosen.index is None else chosen.index
        if index >= (num_gpus := torch.cuda.device_count()):
            raise ValueError(
                f"process {index} of this machine has no GPU of its own, as torch sees {num_gpus}; start at most "
                f"{num_gpus} on each machine"
            )
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    if announced_world_size() > 1 and not is_distributed():
        # Both backends at once: tensors reduce over nccl on CUDA, and the stop flag over gloo without a host sync.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        patience = datetime.timedelta(minutes=30)
        store, number, size = meet(patience)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=patience)
        _stores[:] = [store]
    return chosen


def stop() -> None:
    """Leave the process group."""
    if is_distributed():
        dist.destroy_process_group()
    _stores.clear()
    _failed_first.clear()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group that torchrun announces while the block runs; a group that exists already is kept.

    If the block raises, the process does not wait for the others: it ends, and torchrun ends them. One process says
    why: the first to fail, unless it is the main one, raises FailedHere, and those that fail or are terminated in
    consequence raise FailedElsewhere.
    """
    joins = announced_world_size() > 1 and not is_distributed() and not in_dry_run()
    if joins:
        _failed_first.clear()
        start(device)
    try:
        yield
    except Stopped:
        raise
    except Terminated:
        if joins and _another_failed():  # torchrun then ends the others
            raise FailedElsewhere from None
        raise
    except Exception as error:
        if joins and not fails_first():
            raise FailedElsewhere from error
        if joins and not is_main_process() and isinstance(error, ValueError | OSError):
            raise FailedHere(sentence_of(error)) from error
        raise
    if joins:
        stop()


def fails_first() -> bool:
    """Return whether this process, which fails, is the first of its group to do so, and has to say why.

    A process that fails before it joined the group asks the store all the same.
    """
    if not _failed_first:
        if announced_world_size() == 1:
            return True
        store = _stores[0] if _stores else _store_of_group(MEETING)
        try:
            _failed_first.append(store is None or store.add("failures", 1) == 1)
        except RuntimeError:  # the process that held the store has failed
            _failed_first.append(False)
    return _failed_first[0]


def _another_failed() -> bool:
    try:
        return bool(_stores) and _stores[0].add("failures", 0) > 0
    except RuntimeError:  # the process that held the store has failed
        return True


def _store_of_group(timeout: datetime.timedelta) -> dist.Store | None:
    try:
        return meet(timeout)[0]
    except (RuntimeError, ValueError):  # nobody holds it
        return None


def find_device(name: str) -> torch.device:
    """Return the device of a name: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for CUDA, then MPS, then the CPU.

    Raises:
        ValueError: the device is unknown or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    sees_none = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if sees_none.get(device.type):
        raise ValueError(
            f"device {name!r} was asked for, but torch sees no {device.type.upper()} device; use --device cpu"
        )
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= num_devices:
        raise ValueError(f"device {name!r} was asked for, but there are {num_devices}; use a lower number")
    return device


def background_group() -> Any:
    """Return a new group of all processes on the CPU, for work next to the training; None for one process."""
    return dist.new_group(backend="gloo") if is_distributed() else None


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()


@torch.no_grad()
def all_reduce_mean(x: Tensor) -> Tensor:
    """Return the mean over processes, as a new tensor without gradient."""
    total = x.detach().clone()
    if not is_distributed():
        return total
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Return the tensors of all processes, which have one shape, as [processes, ...] by rank, without gradient."""
    x = x.detach().contiguous()
    if not is_distributed():
        return x.unsqueeze(0)
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.stack(parts)


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum over processes, as a new tensor without gradient."""
    total = x.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Return the largest of each value over processes, by one small all-reduce on the CPU."""
    if not is_distributed():
        return values
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def gather(values: Sequence[T]) -> list[T]:
    """Return the picklable values of all processes, by rank, on each of them."""
    if not is_distributed():
        return list(values)
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


@torch.no_grad()
def gather_rows(blocks: Sequence[Tensor]) -> Tensor:
    """Return the rows [n, ...] of the blocks of all processes, by rank, on each of them.

    The number of rows may differ, and all processes but one may have no block. Each process sends its rows into their
    place, so that at most the result and the process's own rows are held.
    """
    rows = None if not blocks else blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))
    if not is_distributed():
        assert rows is not None
        return rows
    sizes = gather([None if rows is None else (len(rows), tuple(rows.shape[1:]), rows.dtype, rows.device.type)])
    lengths = [0 if size is None else size[0] for size in sizes]
    _, shape, dtype, device = next(size for size in sizes if size is not None)
    total = torch.empty(sum(lengths), *shape, dtype=dtype, device=device)  # `cuda` is this process's own GPU
    for source, part in enumerate(total.split(lengths)):
        if source == rank() and rows is not None:
            part.copy_(rows)
        if len(part):
            dist.broadcast(part.view(torch.uint8), src=source)  # bytes, because gloo sends no bools
    return total


def rows_of_global_draw(draw: Callable[[int], Tensor], num_rows: int) -> Tensor:
    """Return this process's rows of a random tensor that `draw` makes for a number of rows.

    All processes draw the rows of the global batch, from the same random state, and take their own.
    """
    return draw(num_rows * world_size())[num_rows * rank() : num_rows * (rank() + 1)]


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set on any process, by one small all-reduce on the CPU."""
    if not is_distributed():
        return flags
    set_anywhere = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(set_anywhere, op=dist.ReduceOp.MAX)
    return tuple(bool(x) for x in set_anywhere)


@torch.no_grad()
def all_ranks(flag: Tensor) -> Tensor:
    """Return whether a flag, a bool on the device, is set on all processes, without waiting for the device."""
    if not is_distributed():
        return flag
    set_everywhere = flag.to(torch.int32)
    dist.all_reduce(set_everywhere, op=dist.ReduceOp.MIN)
    return set_everywhere.bool()


def local_shard(x: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor (FSDP2), or the tensor itself if it is not sharded."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def is_sharded(x: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which each process holds a part."""
    if type(x) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor  # whose import takes as long as a small command

    return isinstance(x, DTensor)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Each process's loss depends on every process's x, so that the gradients of all losses add up.
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum_with_gradient(x: Tensor) -> Tensor:
    """Return the sum over processes, through which gradients flow back to every process."""
    return _AllReduceSum.apply(x) if is_distributed() else x


def all_gather_with_gradient(x: Tensor) -> Tensor:
    """Return the tensors of all processes, which have one shape, as [processes, ...]; gradients flow back to each."""
    if not is_distributed():
        return x.unsqueeze(0)
    padded = x.new_zeros(world_size(), *x.shape)
    padded[rank()] = x
    return all_reduce_sum_with_gradient(padded)


def broadcast_from_main(value: str) -> str:
    """Return the main process's value on every process."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def averaging_gradients(module: nn.Module, *, static_graph: bool = False) -> DistributedDataParallel:
    """Return a module whose gradients are averaged over the processes, in place of those of this process (DDP).

    Its buffers are not exchanged in a forward pass: those here are equal on all processes, or belong to one.
    `static_graph` is for a module of which some parameters have no gradient, the same ones at every step.
    """
    # `forward_sync_buffers` replaces `broadcast_buffers` from torch 2.13 on; it also makes buffers equal at the start.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    without_exchange: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, static_graph=static_graph, **without_exchange)
