"""Blocks run through torch.compile: the same step, the same names."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch

from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.cli.main import main
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.factory import make_student_teacher, move_to_device
from selfpatch.training.loggers.metrics import read_metrics
from selfpatch.training.packing import pack_crops
from tests.helpers.command_line import TINY, write_photos
from tests.helpers.tiny import hyperparameters, tiny_config, tiny_student_teacher, tiny_views


@pytest.mark.slow
def test_a_compiled_step_is_the_step() -> None:
    """Traced and differentiated ahead of time, but not turned into machine code, which takes a minute."""
    results = []
    for backend in (None, "aot_eager"):
        student_teacher = tiny_student_teacher()
        if backend:
            names = list(student_teacher.state_dict())
            for branch in (student_teacher.student, student_teacher.teacher):
                branch.compile_blocks(backend)
            assert list(student_teacher.state_dict()) == names
        losses = student_teacher(tiny_views(4), hyperparameters())
        losses["loss"].backward()
        gradients = [p.grad.flatten() for p in student_teacher.parameters() if p.grad is not None]
        results.append((losses["loss"].detach(), torch.cat(gradients)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "objective"),
    [("dino", "selfpatch+sere"), ("ibot", "gram+retain"), ("densecl", "distill+koleo+paka+selfpatch_pairs")],
)
def test_a_whole_step_is_one_graph(method: str, objective: str) -> None:
    """Nothing in the networks or the losses waits for the device, nor in packed crops.

    NeCo and Leopart draw from a generator, and break.
    """
    backbone = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    student_teacher = tiny_student_teacher(method=method, objective=objective, backbone=backbone)
    arguments = tiny_views(2), hyperparameters()
    expected = student_teacher(*arguments)
    student_teacher.discard_step()
    pack_crops(student_teacher, "always", torch.device("cpu"), None)
    torch._dynamo.reset()
    found = torch.compile(student_teacher, backend="eager", fullgraph=True)(*arguments)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=1e-5)


def test_every_block_is_compiled_and_copies_are_not() -> None:
    student_teacher = tiny_student_teacher()
    student_teacher.student.compile_blocks("eager")
    blocks = student_teacher.student.backbone.repeated_blocks()
    assert all(block._compiled_call_impl is not None for block in blocks)
    copied = copy.deepcopy(student_teacher.student).backbone.repeated_blocks()
    assert all(block._compiled_call_impl is None for block in copied)


@pytest.mark.parametrize("model", ["swin_tiny", "resnet50"])
def test_what_is_no_vit_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="compile is for a ViT"):
        tiny_student_teacher(model=model).student.compile_blocks("eager")


def test_an_anchor_that_is_no_vit_is_not_compiled(tmp_path: Path) -> None:
    """Nor is a ViT that learns from it refused."""
    swin = BranchEncoder(tiny_student_teacher(model="swin_tiny").student.backbone, None)
    file = write_safetensors(tmp_path / "swin.safetensors", *export_state(swin))
    config = tiny_config(method="none", objective="distill", teacher=str(file), compile=True)
    student_teacher = move_to_device(config, make_student_teacher(config)[0], torch.device("cpu"))
    assert all(block._compiled_call_impl for block in student_teacher.student.backbone.repeated_blocks())
    assert not any(part._compiled_call_impl for part in student_teacher.anchor.modules())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_has_the_losses_of_any_other(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 8)
    losses = []
    for more in ([], ["--compile"]):
        out = tmp_path / f"run{len(more)}"
        assert main(["pretrain", *TINY, "--data", str(tmp_path / "photos"), "--out", str(out), *more]) == 0
        losses.append([row["loss"] for row in read_metrics(out) if "loss" in row])
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
