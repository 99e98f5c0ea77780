"""The composition root: what a configuration becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.config.run import RunConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.factory import (
    backbone_request,
    make_optimizer,
    make_schedule,
    make_student_teacher,
)
from tests.helpers.tiny import tiny_config


@pytest.mark.parametrize(
    ("model", "patch", "expected"),
    [("vit_tiny", 16, (192, 12, 3, 14)), ("vit_small", 8, (384, 12, 6, 28)), ("vit_base", None, (768, 12, 12, 14))],
)
def test_models_by_name(model: str, patch: int | None, expected: tuple[int, ...]) -> None:
    shape = backbone_request(RunConfig(model=model, patch_size=patch)).named()
    assert (shape.embed_dim, shape.depth, shape.num_heads, shape.grid) == expected
    assert shape.patch_size == (patch or 16)


def test_a_pool_takes_the_place_of_the_class_token() -> None:
    alone, _ = make_student_teacher(tiny_config(objective="none"))
    together, _ = make_student_teacher(tiny_config())
    assert alone.student.backbone.has_class_token
    assert alone.student.pool is None
    assert list(alone.student.heads) == ["image"]
    assert not together.student.backbone.has_class_token
    assert together.student.pool is not None
    assert list(together.student.heads) == ["image", "patch"]
    assert (alone.needs.teacher_on_local_crops, together.needs.teacher_on_local_crops) == (False, True)


def test_a_seed_decides_the_weights() -> None:
    first, again, other = (make_student_teacher(tiny_config(seed=seed))[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "student.backbone.trunk.blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("objective", ["none", "selfpatch"])
def test_a_backbone_starts_from_given_weights(tmp_path: Path, objective: str) -> None:
    donor, _ = make_student_teacher(tiny_config(objective=objective, seed=5))
    file = tmp_path / "donor.safetensors"
    save_file(*[export_state(BranchEncoder(donor.student.backbone, donor.student.pool))[0], file,
                export_state(BranchEncoder(donor.student.backbone, donor.student.pool))[1]])  # fmt: skip
    student_teacher, report = make_student_teacher(tiny_config(objective=objective, seed=6, init=str(file)))
    expected = donor.student.backbone.state_dict()
    assert report is not None
    for branch in (student_teacher.student, student_teacher.teacher):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in branch.backbone.state_dict().items())


def test_the_learning_rate_scales_with_the_batch() -> None:
    config = tiny_config(batch_size=1024, epochs=3, optimizer={"base_lr": 5e-4, "teacher_temp": 0.05, "min_lr": 1e-5})
    schedule = make_schedule(config, steps_per_epoch=7)
    assert schedule.peak_lr == pytest.approx(2e-3)
    assert schedule.total_steps == 21
    assert schedule.config == config.optimizer


@pytest.mark.parametrize("text", ["1e-1", 0.1])
def test_numbers_of_a_component_are_read_as_people_write_them(text: str | float) -> None:
    """YAML reads 1e-1, without a dot, as text."""
    student_teacher, _ = make_student_teacher(tiny_config(dino={"student_temp": text}))
    assert student_teacher.objectives["dino"].config.student_temp == 0.1


def test_text_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"dino.student_temp is 'cold'; use a number"):
        make_student_teacher(tiny_config(dino={"student_temp": "cold"}))


def test_xavier_weights_are_for_a_vit() -> None:
    plain, xavier = (
        make_student_teacher(tiny_config(backbone={"initialisation": name}))[0].student.backbone.trunk
        for name in ("truncated_normal", "xavier")
    )
    assert not torch.equal(plain.blocks[0].attn.qkv.weight, xavier.blocks[0].attn.qkv.weight)
    with pytest.raises(ValueError, match="'xavier' is for a ViT, but the model is swin_tiny; leave it out"):
        make_student_teacher(tiny_config(model="swin_tiny", backbone={"initialisation": "xavier"}))


def test_a_rate_of_the_patch_projection_needs_one() -> None:
    config = tiny_config(method="moby", model="resnet50", optimizer={"patch_embed_lr_scale": 0.2})
    with pytest.raises(ValueError, match=r"patch_embed_lr_scale is 0\.2, but resnet50 has no such projection; leave"):
        make_optimizer(config, make_student_teacher(config)[0])
