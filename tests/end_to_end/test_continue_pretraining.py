"""Going on from weights: their architecture, heads first, layers at rates of their own, and a guard of the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.config.sections import OptimizerConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.collapse import regression_warning
from selfpatch.training.factory import make_optimizer, make_student_teacher
from selfpatch.training.trainer import training_step
from tests.helpers.tiny import MODELS, hyperparameters, plain_sgd, tiny_config, tiny_student_teacher, tiny_views


def weights_of(tmp_path: Path, **settings: Any) -> str:
    """A file of the backbone of a tiny network."""
    donor = tiny_student_teacher(**settings)
    state, metadata = export_state(BranchEncoder(donor.student.backbone, donor.student.pool))
    save_file(state, tmp_path / "donor.safetensors", metadata)
    return str(tmp_path / "donor.safetensors")


@pytest.mark.parametrize("model", MODELS)
def test_the_architecture_may_be_that_of_the_weights(tmp_path: Path, model: str) -> None:
    file = weights_of(tmp_path, model=model, objective="none")
    crops = {"global_size": 32, "local_size": 16}
    config = RunConfig().override({"model": "init", "init": file, "objective": "none", "crops": crops})
    config = config.override({"dino": {"num_prototypes": 8, "hidden_dim": 8}})
    student_teacher, report = make_student_teacher(config)
    assert report is not None
    expected = tiny_student_teacher(model=model, objective="none").student.backbone
    assert student_teacher.student.backbone.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(student_teacher.student.backbone.state_dict()[name], tensor)
    with pytest.raises(ValueError, match=r"model is 'init', .* but none are named; give --init"):
        make_student_teacher(config.override({"init": None}))


def test_a_class_token_may_stay_below_a_pool(tmp_path: Path) -> None:
    file = weights_of(tmp_path, objective="none")
    settings: dict[str, Any] = {"model": "init", "init": file, "crops": {"global_size": 16, "local_size": 12}}
    config = RunConfig().override(settings)
    kept, _ = make_student_teacher(config.override({"backbone": {"keep_class_token": True}}))
    assert kept.student.backbone.has_class_token
    assert kept.student.pool is not None
    dropped, report = make_student_teacher(config)
    assert not dropped.student.backbone.has_class_token
    assert report is not None
    assert "backbone.trunk.cls_token" in report.left_out


def test_heads_may_learn_first() -> None:
    student_teacher = tiny_student_teacher()
    backbone = {name: p.clone() for name, p in student_teacher.student.backbone.named_parameters()}
    head = student_teacher.student.heads["patch"].mlp[0].weight.clone()
    hp = hyperparameters(freeze_backbone=True)
    assert training_step(
        student_teacher, [tiny_views(2)], plain_sgd(student_teacher), hp, OptimizerConfig(clip=0, clip_mode="tensor")
    ).taken
    assert all(torch.equal(p, backbone[name]) for name, p in student_teacher.student.backbone.named_parameters())
    assert not torch.equal(student_teacher.student.heads["patch"].mlp[0].weight, head)


@pytest.mark.parametrize("model", MODELS)
def test_the_rate_falls_from_layer_to_layer(model: str) -> None:
    settings = {"model": model, "objective": "none", "optimizer": {"layer_decay": 0.5}}
    config = tiny_config(**settings)
    student_teacher = tiny_student_teacher(**settings)
    names = {id(p): name for name, p in student_teacher.named_parameters()}
    optimizer = make_optimizer(config, student_teacher)
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    backbone = student_teacher.student.backbone
    for name, scale in scales.items():
        if name.startswith("student.backbone."):
            layer = backbone.layer_of(name.removeprefix("student.backbone."))
            assert scale == 0.5 ** (backbone.num_layers + 1 - layer)
        else:
            assert scale == 1.0
    assert len(set(scales.values())) >= 3


@pytest.mark.parametrize(
    ("name", "model"), [("continue-pretraining", m) for m in MODELS] + [("post-train-patches", "vit_tiny")]
)
def test_the_recipes_go_on_from_any_family_that_their_header_names(tmp_path: Path, name: str, model: str) -> None:
    backbone = {"backbone": {"depth": 7}} if model == "vit_tiny" else {}
    file = weights_of(tmp_path, model=model, objective="none", **backbone)
    scale = 1 if model == "vit_tiny" else 2
    method = {"method": "dino"} if model == "resnet50" else {}
    config = load_recipe(name).override({"init": file, **method})
    config = config.override({"crops": {"global_size": 16 * scale, "local_size": 12 * scale, "num_local": 2}})
    config = config.override({config.method: {"num_prototypes": 16, "hidden_dim": 8, "bottleneck_dim": 4}})
    student_teacher, report = make_student_teacher(config)
    assert report is not None
    assert not report.missing
    optimizer = make_optimizer(config, student_teacher)
    for step in (0, 1):
        hp = hyperparameters(step, lr=1e-3, freeze_backbone=step == 0)
        outcome = training_step(
            student_teacher, [tiny_views(2, scale=scale)], optimizer, hp, OptimizerConfig(clip=0.3, clip_mode="tensor")
        )
        assert outcome.taken


def test_sincos_positions_are_not_laid_over_weights(tmp_path: Path) -> None:
    file = weights_of(tmp_path, objective="none")
    with pytest.raises(ValueError, match="but the weights of init bring their own; leave it out"):
        make_student_teacher(tiny_config(init=file, objective="none", backbone={"positions": "sincos"}))


def test_a_pool_goes_on_too(tmp_path: Path) -> None:
    file = weights_of(tmp_path)
    student_teacher, report = make_student_teacher(tiny_config(init=file, seed=9))
    assert report is not None
    assert "pool.query" in report.matched
    assert torch.equal(student_teacher.student.pool.query, tiny_student_teacher().student.pool.query)


@pytest.mark.parametrize("setting", [{"patch_size": 8}, {"backbone": {"depth": 3}}])
def test_the_weights_own_architecture_is_not_changed(tmp_path: Path, setting: dict[str, Any]) -> None:
    config = RunConfig().override({"model": "init", "init": weights_of(tmp_path), **setting})
    with pytest.raises(ValueError, match=r"is (8|3), but model 'init' is as the weights in .*; leave it out"):
        make_student_teacher(config)


def test_the_guard_names_what_fell() -> None:
    at_start = {"knn_top1": 0.60, "view_matching": 0.30, "step": 0}
    assert regression_warning({"knn_top1": 0.59, "view_matching": 0.45}, at_start) is None
    warning = regression_warning({"knn_top1": 0.50, "view_matching": 0.45}, at_start)
    assert warning is not None
    assert "knn_top1 from 0.600 to 0.500" in warning
    assert "view_matching" not in warning
