"""Which runs encode crops of all sizes at once, and that their steps are those of separate passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import selfpatch
from selfpatch.cli.main import main
from selfpatch.config.sections import Packing
from selfpatch.models.backbones.vit import ViT
from selfpatch.training.factory import make_student_teacher, move_to_device
from selfpatch.training.packing import pack_crops
from selfpatch.training.parallel import data_parallel, recompute_activations, shard
from selfpatch.training.student_teacher import StudentTeacher
from tests.helpers.tiny import hyperparameters, part_of, tiny_config, tiny_student_teacher, tiny_views
from tests.helpers.tiny_eva import EVA02
from tests.helpers.workers import WorkerPool

CPU = torch.device("cpu")
BOTH: tuple[Packing, ...] = ("never", "always")


def loss_and_gradient(student_teacher: StudentTeacher, model: Any = None, images: slice = slice(None)) -> list[Tensor]:
    torch.manual_seed(3)
    loss = (model or student_teacher)(part_of(tiny_views(4), images), hyperparameters())["loss"]
    loss.backward()
    gradients = [p.grad for p in student_teacher.parameters() if p.grad is not None]
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
    return [loss.detach(), torch.cat([g.flatten() for g in whole])]


@pytest.mark.parametrize(
    ("method", "objective"), [("ibot", "paka+leopart"), ("swav", "sere"), ("none", "paka"), ("moco_v3", "selfpatch")]
)
def test_a_packed_step_is_the_step(method: str, objective: str) -> None:
    """With masks, pairs of crops, the class token's attention, a teacher of all views, or one size alone."""
    results = []
    for packing in BOTH:
        student_teacher = tiny_student_teacher(method=method, objective=objective, backbone={"drop_path": 0.3})
        pack_crops(student_teacher, packing, CPU, None)
        results.append(loss_and_gradient(student_teacher))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", ["never", "always"])
def test_a_block_runs_once_a_step_for_all_sizes(packing: Packing) -> None:
    student_teacher, calls = tiny_student_teacher(method="dino", objective="paka"), []
    pack_crops(student_teacher, packing, CPU, None)
    for branch in (student_teacher.student, student_teacher.teacher):
        assert isinstance(branch.backbone, ViT)
        branch.backbone.trunk.blocks[0].register_forward_hook(lambda *_, branch=branch: calls.append(branch))
    student_teacher(tiny_views(2), hyperparameters())
    student, teacher = (calls.count(branch) for branch in (student_teacher.student, student_teacher.teacher))
    assert (student, teacher) == ((3, 2) if packing == "never" else (1, 1))


@pytest.mark.parametrize("model", ["swin_tiny", "resnet50", "convnext_tiny", EVA02])
def test_other_models_are_not_packed_and_refuse_to_be(model: str) -> None:
    config = tiny_config(model=model, method="dino", objective="none", precision="bf16")
    student_teacher = move_to_device(config, make_student_teacher(config)[0], CPU)
    assert not student_teacher.student.packed
    with pytest.raises(ValueError, match=f"packing is 'always', but {model} cannot encode crops of several sizes"):
        make_student_teacher(config.override({"packing": "always"}))


def test_auto_packs_in_bfloat16_on_a_cpu() -> None:
    student_teacher, gpu = tiny_student_teacher(), torch.device("cuda:0")

    def packed(*how: Any) -> tuple[bool, bool]:
        pack_crops(student_teacher, *how)
        return student_teacher.student.packed, student_teacher.teacher.packed

    assert packed("auto", CPU, torch.bfloat16) == (True, True)
    assert packed("auto", CPU, None) == (False, False)
    assert packed("always", CPU, None) == (True, True)
    assert packed("never", CPU, torch.bfloat16) == (False, False)
    assert packed("auto", gpu, torch.bfloat16) == (False, False)
    assert packed("always", gpu, torch.bfloat16) == (True, True)
    assert packed("auto", torch.device("mps"), torch.bfloat16) == (False, False)


def in_a_group(rank: int, packing: Packing, parallel: str) -> list[Tensor]:
    student_teacher = tiny_student_teacher(objective="paka")
    pack_crops(student_teacher, packing, CPU, None)
    recompute_activations(student_teacher.student)
    if parallel == "fsdp":
        shard(student_teacher, CPU, None)
    return loss_and_gradient(student_teacher, data_parallel(student_teacher), slice(2 * rank, 2 * rank + 2))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_pack(pool: WorkerPool, parallel: str) -> None:
    for packed, each in zip(*(pool.run(in_a_group, packing, parallel) for packing in ("always", "never")), strict=True):
        torch.testing.assert_close(packed, each, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_pack() -> None:
    """Traced and differentiated ahead of time, but not turned into machine code, which takes a minute."""
    results = []
    for packing, backend in zip(BOTH, (None, "aot_eager"), strict=True):
        student_teacher = tiny_student_teacher(method="dino", objective="none", backbone={"drop_path": 0.3})
        pack_crops(student_teacher, packing, CPU, None)
        if backend:
            torch._dynamo.reset()
            student_teacher.student.compile_blocks(backend)
        results.append(loss_and_gradient(student_teacher))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_dry_run_counts_the_same_flops() -> None:
    settings: dict[str, Any] = {"recipe": "small-cpu", "objective": "none", "batch_size": 4, "backbone": {"depth": 1}}
    always, never = (
        selfpatch.pretrain(**settings, device="cpu", packing=packing, dry_run=True) for packing in ("always", "never")
    )
    assert always.flops == never.flops
    assert always.memory["activations"] < 1.1 * never.memory["activations"]


def test_the_command_refuses_what_cannot_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "--recipe", "small-cpu", "--model", "resnet50", "--objective", "none", "--device", "cpu"]
    assert main([*command, "--packing", "always", "--dry-run", "--out", str(tmp_path / "run")]) == 2
    assert "packing is 'always', but resnet50 cannot" in capsys.readouterr().err
