"""Blocks that are recomputed, compiled and sharded compute what plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from selfpatch.models.backbones.build import build_backbone, named_backbone_config
from selfpatch.models.branch import Branch
from selfpatch.training.parallel import recompute_activations, shard, whole_teacher
from selfpatch.training.student_teacher import StudentTeacher
from tests.helpers.tiny import hyperparameters, tiny_student_teacher, tiny_views
from tests.helpers.workers import WorkerPool


@pytest.mark.parametrize("model", ["vit_small", "vit_giant", "swin_tiny", "resnet50", "convnext_tiny"])
def test_blocks_hold_most_parameters_of_a_backbone(model: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(named_backbone_config(model))
    blocks = backbone.blocks()
    assert len(blocks) == backbone.num_layers
    assert sum(p.numel() for block in blocks for p in block.parameters()) > 0.8 * sum(
        p.numel() for p in backbone.parameters()
    )


def loss_and_gradient(student_teacher: StudentTeacher) -> tuple[Tensor, Tensor, int]:
    """Return the loss, all gradients, and the bytes that the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    views = tiny_views(4, scale=1 if student_teacher.student.backbone.patch_size == 4 else 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = student_teacher(views, hyperparameters())["loss"]
    loss.backward()
    gradients = [whole(p.grad).flatten() for p in student_teacher.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients), sum(kept.values())


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("model", ["vit_tiny", "swin_tiny"])
def test_recomputed_activations_are_not_kept_and_change_nothing(model: str) -> None:
    settings = {"model": model, "backbone": {"drop_path": 0.5}} if model == "vit_tiny" else {"model": model}
    results = []
    for recompute in (False, True):
        student_teacher = tiny_student_teacher(objective="none", **settings)
        if recompute:
            names = list(student_teacher.state_dict())
            recompute_activations(student_teacher.student)
            assert list(student_teacher.state_dict()) == names
        torch.manual_seed(0)
        results.append(loss_and_gradient(student_teacher))
    (loss, gradient, kept), (again, gradient_again, kept_less) = results
    assert torch.equal(loss, again)
    torch.testing.assert_close(gradient_again, gradient)
    assert kept_less < 0.75 * kept


def test_a_batch_counts_once_in_the_statistics_of_recomputed_batch_norms() -> None:
    statistics = []
    for recompute in (False, True):
        student_teacher = tiny_student_teacher(method="moco_v2", objective="none", model="resnet50")
        if recompute:
            recompute_activations(student_teacher.student)
        loss_and_gradient(student_teacher)
        student_teacher.finish_step(0.9)
        statistics.append(dict(student_teacher.student.named_buffers()))
    torch.testing.assert_close(statistics[1], statistics[0])


def composed(rank: int, precision: torch.dtype | None, compiled: bool) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of recomputed, compiled and sharded blocks, whose processes see one batch."""
    student_teacher = tiny_student_teacher()
    recompute_activations(student_teacher.student)
    if compiled:  # not turned into machine code, which takes a minute
        for branch in (student_teacher.student, student_teacher.teacher):
            branch.compile_blocks("aot_eager")
    shard(student_teacher, torch.device("cpu"), precision)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        loss, gradient, _ = loss_and_gradient(student_teacher)
    block = student_teacher.student.backbone.blocks()[0]
    assert {p.dtype for p in block.parameters()} == {torch.float32}  # what is stored
    return loss, gradient


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "compiled"), [(None, True), (torch.bfloat16, False)], ids=str)
def test_recomputed_compiled_and_sharded_blocks_compose(
    pool: WorkerPool, precision: torch.dtype | None, compiled: bool
) -> None:
    loss, gradient, _ = loss_and_gradient(tiny_student_teacher())
    tolerance: dict[str, Any] = {"rtol": 0.05, "atol": 0.05} if precision else {"rtol": 1e-4, "atol": 1e-5}
    for got, got_gradient in pool.run(composed, precision, compiled):
        torch.testing.assert_close(got, loss, **tolerance)
        if precision is None:
            torch.testing.assert_close(got_gradient, gradient, **tolerance)
        else:
            assert torch.cosine_similarity(got_gradient, gradient, dim=0) > 0.98
            assert not torch.equal(got, loss)


def gather_teacher(rank: int, settings: dict[str, Any]) -> tuple[dict[str, Tensor], bool, Tensor] | None:
    student_teacher = tiny_student_teacher(**settings)
    shard(student_teacher, torch.device("cpu"), None)
    teacher = whole_teacher(student_teacher)
    if teacher is None:
        return None
    assert isinstance(teacher, Branch)
    images = tiny_views(2, scale=2).global_crops[0].float()
    tokens = teacher.eval().backbone(images).patches
    return teacher.state_dict(), any(p.requires_grad for p in teacher.parameters()), tokens


@pytest.mark.parametrize("settings", [{}, {"model": "swin_tiny", "objective": "none"}], ids=str)
def test_the_main_process_gathers_the_teacher(pool: WorkerPool, settings: dict[str, Any]) -> None:
    gathered, other = pool.run(gather_teacher, settings)
    assert other is None
    state, learns, tokens = gathered
    assert not learns
    teacher = tiny_student_teacher(**settings).teacher
    assert all(torch.equal(state[name], tensor) for name, tensor in teacher.state_dict().items())
    images = tiny_views(2, scale=2).global_crops[0].float()
    assert torch.equal(tokens, teacher.eval().backbone(images).patches)
