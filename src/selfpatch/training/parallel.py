"""Training of one network by several processes: DDP, or FSDP2, which shards it. Both are applied from outside a model.

The order in which a network is prepared follows from what wraps what (`factory.move_to_device`):

    activation checkpointing    recomputes the forward pass of a block
    torch.compile               compiles that forward pass, one block for all
    FSDP2                       gathers a block's parameters before its forward and backward pass, and frees them after
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from selfpatch.core.distributed import averaging_gradients, is_distributed, is_main_process, is_sharded, world_size
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.branch import Branch
from selfpatch.models.layers.deferred_state import DeferredState, deferred_states
from selfpatch.models.layers.lora import LoraLinear
from selfpatch.training.student_teacher import StudentTeacher


def recompute_activations(branch: Branch) -> None:
    """Recompute the activations inside each block in the backward pass, instead of storing them, in place."""
    for block in branch.backbone.blocks():
        recomputed = partial(checkpoint, block.forward, use_reentrant=False)
        if states := list(deferred_states(block)):  # torch.compile, which is for blocks without any, takes no contexts
            recomputed.keywords["context_fn"] = partial(_contexts_of_passes, states)
        block.forward = recomputed


def _contexts_of_passes(states: Sequence[DeferredState]) -> tuple[AbstractContextManager[None], ...]:
    """Return the contexts of a block's forward pass and of its recomputation."""
    return contextlib.nullcontext(), _accumulating_nothing(states)


@contextlib.contextmanager
def _accumulating_nothing(states: Sequence[DeferredState]) -> Iterator[None]:
    """Keep what batch norms have accumulated, so that a batch does not count again when its block is recomputed."""
    before = [state.accumulated for state in states]
    for state in states:
        state.discard()
    try:
        yield
    finally:
        for state, accumulated in zip(states, before, strict=True):
            state.accumulated = accumulated


def shard(student_teacher: StudentTeacher, device: torch.device, precision: torch.dtype | None) -> None:
    """Shard parameters, gradients and optimizer state over the processes, in place, if there are several (FSDP2).

    Every process keeps 1 / N of each parameter of student, teacher and anchor:

        for block in blocks of each branch: gathered for its forward pass, and again for its backward pass
        everything else, from embeddings to heads and predictors: gathered once a step

    Buffers, such as centres, queues and running statistics, stay whole. If `precision` is given, the blocks of a ViT
    without adapters, whose updates it would round off, are gathered in it; gradients are reduced in float32.
    """
    if not is_distributed():
        return
    # Their import takes as long as a small command.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    student, *others = branches_of(student_teacher)
    known = {id(p) for p in student.parameters()}
    for branch in others:
        _unshare(branch, known)
    student_teacher.teacher_form = (_without_values(student_teacher.teacher),)
    mesh = init_device_mesh(device.type, (world_size(),))
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    low = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for branch in (student, *others):
        blocks = branch.backbone.blocks()
        if branch is student_teacher.teacher and student_teacher.needs.class_attention:
            blocks = blocks[:-1]  # whose parts are called one by one
        adapted = any(isinstance(part, LoraLinear) for part in branch.modules())
        gathered_low = precision is not None and isinstance(branch.backbone, ViT) and not adapted
        for block in blocks:
            if gathered_low:
                _norm_in_type_of_input(block)
            fully_shard(block, mesh=mesh, mp_policy=low if gathered_low else exact)
    fully_shard(student_teacher, mesh=mesh, mp_policy=exact)


def data_parallel(student_teacher: StudentTeacher) -> nn.Module:
    """Return the network within DDP if there are several processes and it is not sharded, else itself."""
    if is_distributed() and not student_teacher.teacher_form:
        return averaging_gradients(student_teacher)
    return student_teacher


def whole_teacher(student_teacher: StudentTeacher) -> Branch | None:
    """Return the teacher on the main process, and None on the others.

    All processes call it: the parameters of a sharded teacher are gathered into a copy.
    """
    teacher = student_teacher.teacher
    if not student_teacher.teacher_form:
        return teacher if is_main_process() else None
    state = gathered(teacher.state_dict(), keep_device=True)
    if not is_main_process():
        return None
    teacher = copy.deepcopy(student_teacher.teacher_form[0])
    teacher.load_state_dict(state, assign=True)
    return teacher


def gathered(state: Any, *, keep_device: bool = False) -> Any:
    """Return nested values with whole tensors in place of sharded ones, on the main process.

    All processes call it, and the others get None in place of sharded tensors. Whole ones are moved to the CPU, unless
    `keep_device`.
    """

    def whole(value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_sharded(value):
            return value
        full = value.full_tensor()  # type: ignore[attr-defined]
        return (full if keep_device else full.cpu()) if is_main_process() else None

    return tree_map(whole, state)


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, which every process holds, sharded as another tensor of its shape."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(like.device), mesh, placements, src_data_rank=None)


def load_whole(
    student_teacher: nn.Module, network: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Load whole tensors, which every process holds, into a network and its optimizer, sharded or not."""
    targets = student_teacher.state_dict()
    student_teacher.load_state_dict(
        {name: sharded_like(tensor, targets[name]) if name in targets else tensor for name, tensor in network.items()}
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def of_parameter(number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        own = parameters[number]
        return {k: sharded_like(v, own) if getattr(v, "shape", None) == own.shape else v for k, v in values.items()}

    moments = {number: of_parameter(number, values) for number, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": moments})


class _LayerNorm(nn.LayerNorm):
    """Layer norm that computes in the type of its input, whatever that of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _norm_in_type_of_input(module: nn.Module) -> None:
    """Exchange the layer norms below a module in place; parameters and names stay."""
    for part in module.modules():
        if type(part) is nn.LayerNorm and part.bias is not None:
            part.__class__ = _LayerNorm


def branches_of(student_teacher: StudentTeacher) -> list[Branch]:
    """Return student, teacher and, if there is one, the anchor."""
    anchor = student_teacher.anchor
    return [student_teacher.student, student_teacher.teacher, *([] if anchor is None else [anchor.branch])]


def _unshare(branch: Branch, known: set[int]) -> None:
    """Give a branch its own copies of parameters that are `known`, since FSDP2 gathers each in one place."""
    for module in branch.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in known:
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


def _without_values(branch: Branch) -> Branch:
    """Return a copy of a branch whose parameters are on the meta device."""
    known: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in branch.parameters()}
    return copy.deepcopy(branch, known)  # which takes what it knows, so that no values are copied
