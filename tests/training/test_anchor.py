"""Runs with an anchor: where its weights come from, what it changes, and that a checkpoint holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.api.pretrain import pretrain, resume
from selfpatch.checkpoints.checkpoint_store import load_checkpoint
from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.sections import OptimizerConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step
from tests.helpers.command_line import write_photos
from tests.helpers.released_forms import random_backbone
from tests.helpers.tiny import (
    hyperparameters,
    plain_sgd,
    tiny_config,
    tiny_encoder_file,
    tiny_student_teacher,
    tiny_views,
)

CLIPPING = OptimizerConfig(clip=0.0)


def anchor_state(student_teacher: StudentTeacher) -> dict[str, Tensor]:
    assert student_teacher.anchor is not None
    return {name: tensor.clone() for name, tensor in student_teacher.anchor.state_dict().items()}


def steps(student_teacher: StudentTeacher, count: int) -> list[dict[str, Tensor]]:
    optimizer = plain_sgd(student_teacher)
    return [
        training_step(student_teacher, [tiny_views(4, seed=i)], optimizer, hyperparameters(i), CLIPPING).values
        for i in range(count)
    ]


def test_it_is_the_named_encoder_and_nothing_moves_it() -> None:
    student_teacher = tiny_student_teacher(method="none", objective="distill")
    encoder, _ = load_encoder(tiny_encoder_file())
    before = anchor_state(student_teacher)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(before[f"branch.{name}"], tensor)
    trained = {id(p) for group in plain_sgd(student_teacher).param_groups for p in group["params"]}
    assert not trained & {id(p) for p in student_teacher.anchor.parameters()}
    steps(student_teacher, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in anchor_state(student_teacher).items())


def test_without_a_name_it_is_a_copy_of_the_initial_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "ibot", "objective": "gram+retain", "patch_size": 8}
    settings |= {"backbone": {"depth": 1, "keep_class_token": True}, "crops": {"local_size": 8}}
    student_teacher, _ = make_student_teacher(tiny_config(**settings, init=tiny_encoder_file()))
    student = student_teacher.student.backbone.state_dict()
    assert student_teacher.anchor is not None
    for name, tensor in student_teacher.anchor.branch.backbone.state_dict().items():
        assert torch.equal(tensor, student[name])
    assert not student_teacher.anchor.branch.heads


def test_the_teacher_is_not_asked_for_what_the_anchor_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    cases = (
        ("none", "distill", 0),
        ("none", "koleo+distill", 0),
        ("none", "sere_pairs+gram", 0),
        ("dino", "distill", 1),
    )
    for method, objective, expected in cases:
        student_teacher = tiny_student_teacher(method=method, objective=objective)
        student_teacher.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        values = student_teacher(tiny_views(4), hyperparameters(), with_meters=True)
        assert seen.pop() == expected
        assert "patch_rank" in values
        assert ("effective_rank" in values) == ("pairs" not in objective)  # pairs have no image tokens


def test_without_trained_weights_it_begins_at_the_first_refresh() -> None:
    config: dict[str, Any] = {"objective": "gram", "teacher": None, "anchor": {"refresh_every": 2, "max_refreshes": 1}}
    student_teacher = tiny_student_teacher(**config)
    gram = [float(values["gram"]) for values in steps(student_teacher, 4)]
    assert gram[:2] == [0, 0]
    assert min(gram[2:]) > 0


@pytest.mark.parametrize(
    ("epochs", "end"), [(4, ""), (1, ", but the run ends at step 2; lower --anchor.refresh-every")]
)
def test_a_run_says_when_the_losses_on_its_anchor_begin(
    epochs: int, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_photos(tmp_path / "photos", 8))
    anchored: dict[str, Any] = {"objective": "gram", "teacher": None, "anchor": {"refresh_every": 2}}
    config = tiny_config(
        **anchored, data=data, out=str(tmp_path / "run"), epochs=epochs, batch_size=4, loader={"held_out": 0}
    )
    pretrain(config, dry_run=True)
    assert f"losses on the anchor are 0 until step 2{end}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "retain", "teacher": None}, "retain compares .* --init, or refresh it from the EMA teacher"),
        ({"objective": "distill", "teacher": None, "anchor": {"refresh_every": 1}}, "name one with --teacher"),
        ({"objective": "gram", "anchor": {"refresh_every": 1}}, "refresh_every is 1, but the encoder of teacher is of"),
        ({"objective": "none", "teacher": tiny_encoder_file()}, "a run of dino has no use for a frozen encoder"),
        ({"objective": "retain", "backbone": {"embed_dim": 8}}, "these have width 16 and the student's 8; use"),
        ({"objective": "distill", "channels": 4, "data": "photos"}, "images of 3 channels, but channels is 4"),
    ],
)
def test_what_gives_no_anchor_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_student_teacher(tiny_config(**settings))


def test_a_teacher_of_other_norms_of_images_cannot_be_replaced(tmp_path: Path) -> None:
    backbone = make_student_teacher(tiny_config(objective="none"))[0].student.backbone
    other = random_backbone(replace(backbone.config, std=(0.5, 0.5, 0.5)), seed=5)
    teacher = write_safetensors(tmp_path / "teacher.safetensors", *export_state(BranchEncoder(other, None)))
    settings = {"objective": "gram", "teacher": str(teacher), "anchor": {"refresh_every": 1}}
    with pytest.raises(ValueError, match="refresh_every is 1, but the encoder of teacher is of another"):
        make_student_teacher(tiny_config(**settings))


def test_a_run_resumes_without_the_file_of_its_teacher(tmp_path: Path) -> None:
    photos, teacher = write_photos(tmp_path / "photos", 8), tmp_path / "teacher.safetensors"
    teacher.write_bytes(Path(tiny_encoder_file()).read_bytes())
    settings = {"objective": "distill", "method": "none", "teacher": str(teacher), "data": str(photos)}
    settings |= {"anchor": {"size": 2.0, "colours": "clean"}, "loader": {"workers": 0, "held_out": 0}}
    settings |= {"watch": {"evaluate_every": 0, "picture_images": 0}, "checkpoint": {"keep": 9, "every_steps": 1}}
    runs = [pretrain(tiny_config(**settings, out=str(tmp_path / name), epochs=2)) for name in ("through", "resumed")]
    teacher.unlink()
    newest = sorted((runs[1] / "checkpoints").glob("*.pt"))[-1]
    expected = load_checkpoint(newest)
    newest.unlink()
    resume(runs[1])
    ours, theirs = (load_checkpoint(sorted((run / "checkpoints").glob("*.pt"))[-1])["pretrainer"] for run in runs)
    assert any(name.startswith("anchor.") for name in ours)
    assert expected["step"] == 4
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
