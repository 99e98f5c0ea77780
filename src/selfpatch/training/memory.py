"""Memory that a network, its gradients and its optimizer take on a process, from shapes alone."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selfpatch.training.parallel import branches_of
from selfpatch.training.student_teacher import StudentTeacher

STATES_PER_PARAMETER = {"AdamW": 2, "SGD": 1, "Lars": 1}
"""Numbers that each optimizer keeps for a trained parameter; momentum is assumed."""


def memory_of(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Return bytes by purpose of a whole network: what is stored for good, and what training adds."""
    memory = {"parameters and buffers": _bytes(network.parameters()) + _bytes(network.buffers())}
    if optimizer is not None:
        trained = _bytes(p for group in optimizer.param_groups for p in group["params"])
        memory |= {"gradients": trained, "optimizer state": trained * STATES_PER_PARAMETER[type(optimizer).__name__]}
    return memory


def memory_when_shared(
    student_teacher: StudentTeacher,
    optimizer: torch.optim.Optimizer,
    parallel: str,
    processes: int,
    precision: torch.dtype | None,
) -> dict[str, int]:
    """Return bytes by purpose that each process holds of a network and its optimizer, without activations.

    What is gathered at once when it is sharded: everything outside the blocks with its gradients, and two blocks, of
    which one is computed and the next one fetched, with the gradients of one.

    Args:
        student_teacher: the network, not sharded.
        optimizer: its optimizer.
        parallel: `ddp` or `fsdp`.
        processes: number of processes.
        precision: type in which blocks are gathered; if None, float32.
    """
    memory = memory_of(student_teacher, optimizer)
    if processes == 1:
        return memory
    if parallel == "ddp":
        return memory | {"buckets of gradients": memory["gradients"]}
    blocks = [[*block.parameters()] for branch in branches_of(student_teacher) for block in branch.backbone.blocks()]
    within = {id(p) for block in blocks for p in block}
    outside = [p for p in student_teacher.parameters() if id(p) not in within]
    whole = _bytes(outside) + _bytes(p for p in outside if p.requires_grad)
    bytes_each = 4 if precision is None else precision.itemsize
    of_blocks = 3 * bytes_each * max((sum(p.numel() for p in block) for block in blocks), default=0)
    buffers = _bytes(student_teacher.buffers())
    return {
        "parameters and buffers": (memory["parameters and buffers"] - buffers) // processes + buffers,
        "gradients": memory["gradients"] // processes,
        "optimizer state": memory["optimizer state"] // processes,
        "gathered parameters and gradients": whole + of_blocks,
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
