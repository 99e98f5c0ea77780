"""Going on from weights: their architecture, heads first, layers at rates of their own, and a guard of the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import selfpatch
from selfpatch.checkpoints.checkpoint_store import load_checkpoint
from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.config.sections import OptimizerConfig
from selfpatch.models.backbones.config import backbone_config_from_dict
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.collapse import regression_warning
from selfpatch.training.factory import make_optimizer, make_student_teacher
from selfpatch.training.online_eval import teacher_encoder
from selfpatch.training.optim import set_hyperparameters
from selfpatch.training.trainer import training_step
from tests.helpers.tiny import (
    COMPONENTS,
    MODELS,
    hyperparameters,
    plain_sgd,
    tiny_config,
    tiny_student_teacher,
    tiny_views,
)

CROPS = {"global_size": 32, "local_size": 32, "num_local": 1}
TINY: dict[str, Any] = {
    "vit_small_dinov3": {"patch_size": 8, "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0}},
}
COMPONENTS_OF_DINO = {name: COMPONENTS[name] for name in ("dino", "selfpatch")}


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
    with pytest.raises(ValueError, match=r"model is 'init', .* but none are named; add --init"):
        make_student_teacher(config.override({"init": None}))


def test_a_class_token_of_the_weights_stays_below_a_pool(tmp_path: Path) -> None:
    file = weights_of(tmp_path, objective="none")
    settings: dict[str, Any] = {"model": "init", "init": file, "crops": {"global_size": 16, "local_size": 12}}
    config = RunConfig().override(settings)
    kept, _ = make_student_teacher(config)
    assert kept.student.backbone.has_class_token
    assert kept.student.pool is not None
    dropped, report = make_student_teacher(config.override({"backbone": {"keep_class_token": False}}))
    assert not dropped.student.backbone.has_class_token
    assert report is not None
    assert "backbone.trunk.cls_token" in report.left_out


@pytest.mark.parametrize("objective", ["selfpatch", "selfpatch+sere"])
@pytest.mark.parametrize("model", [*MODELS, "vit_small_dinov3"])
def test_a_new_pool_leaves_the_patches_of_the_weights_as_they_are(tmp_path: Path, model: str, objective: str) -> None:
    file = weights_of(tmp_path, model=model, objective="none", **TINY.get(model, {}))
    config = RunConfig().override({"model": "init", "init": file, "objective": objective, "crops": CROPS})
    student_teacher, report = make_student_teacher(config.override(COMPONENTS_OF_DINO))
    images, expected = torch.randn(2, 3, 32, 48, generator=torch.manual_seed(0)), load_encoder(file)[0]
    assert torch.equal(teacher_encoder(student_teacher.teacher).eval().patches(images), expected.patches(images))
    for branch in (student_teacher.student, student_teacher.teacher):
        (tokens,) = branch.eval()([images[None]]).tokens_per_resolution
        if model != "resnet50":  # its weights have no final norm
            torch.testing.assert_close(tokens.patches.movedim(-1, 1), expected.patches(images))
            assert branch.pool.norm is branch.backbone.final_norm
    assert report is not None
    said = str(report).split("; ")
    assert "the pool is new, so that image features start untrained" in said
    assert ("the pool's norm is the trunk's final norm, which goes on learning" in said) == (model != "resnet50")
    assert not any("norm" in name for name in report.left_out)


@pytest.mark.parametrize("model", ["vit_tiny", "swin_tiny", "vit_small_dinov3"])
def test_a_run_of_no_change_gives_the_features_of_its_initial_weights(tmp_path: Path, model: str) -> None:
    """The rate is 0, so that a step changes nothing; eps of the norms differ between the families."""
    file = weights_of(tmp_path, model=model, objective="none", **TINY.get(model, {}))
    noise = np.random.default_rng(0).integers(256, size=(9, 40, 48, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    run = selfpatch.pretrain(
        load_recipe("small-1k"), data=str(tmp_path / "photos"), out=str(tmp_path / "run"), model="init", init=file,
        objective="selfpatch", crops=CROPS, batch_size=4, epochs=0.5, device="cpu", precision="fp32",
        optimizer={"base_lr": 0, "min_lr": 0}, loader={"workers": 0, "held_out": 1}, **COMPONENTS_OF_DINO,
    )  # fmt: skip
    images, expected = torch.randn(2, 3, 32, 48), selfpatch.load(file, device="cpu")
    sources = [run, run / "exported" / "backbone.safetensors"]
    encoders = [selfpatch.load(source, device="cpu") for source in sources]
    for encoder in encoders:
        assert torch.equal(encoder.patches(images), expected.patches(images))
        assert torch.equal(encoder.image(images), encoders[0].image(images))
    assert torch.equal(
        selfpatch.load(run, device="cpu", normed_patches=False).patches(images),
        selfpatch.load(file, device="cpu", normed_patches=False).patches(images),
    )
    # Its weights are initial weights again, now with a pool; and the run is resumed in the same architecture.
    again, report = make_student_teacher(
        RunConfig().override({"model": "init", "init": str(run), "crops": CROPS, **COMPONENTS_OF_DINO})
    )
    assert report is not None
    assert "pool.query" in report.matched
    assert torch.equal(teacher_encoder(again.teacher).eval().image(images), encoders[0].image(images))
    newest = RunDirectory.open(run).checkpoints.newest()
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    config = RunConfig.from_saved(RunDirectory.open(run).settings, run / "config.yaml")
    resumed, _ = make_student_teacher(config, backbone_config_from_dict(checkpoint["shape"]))
    resumed.load_state_dict(checkpoint["pretrainer"])
    assert torch.equal(teacher_encoder(resumed.teacher).eval().patches(images), expected.patches(images))


def test_a_run_without_initial_weights_has_no_norm_below_its_pool() -> None:
    student = tiny_student_teacher().student
    assert student.backbone.final_norm is None
    assert not student.backbone.has_class_token


def test_weights_bring_the_normalisation_of_their_channels(tmp_path: Path) -> None:
    two = tiny_config(data="scans", channels=2, objective="none")
    donor, _ = make_student_teacher(two, statistics=((0.25, 0.5), (0.125, 0.2)))
    state, metadata = export_state(BranchEncoder(donor.student.backbone, None))
    save_file(state, tmp_path / "donor.safetensors", metadata)
    config = two.override({"init": str(tmp_path / "donor.safetensors")})
    same = make_student_teacher(config, statistics=((0.1, 0.1), (0.3, 0.3)))[0].student.backbone
    assert (same.mean, same.std) == ((0.25, 0.5), (0.125, 0.2))
    measured = (0.1,) * 4, (0.3,) * 4
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, [0, 1, 1]]
    metadata["shape"] = metadata["shape"].replace('"in_channels": 2', '"in_channels": 3')
    save_file(state, tmp_path / "donor.safetensors", metadata)
    other = make_student_teacher(config.override({"channels": 4}), statistics=measured)[0].student.backbone
    assert (other.mean, other.std) == measured


def test_heads_may_learn_first() -> None:
    student_teacher = tiny_student_teacher()
    backbone = {name: p.clone() for name, p in student_teacher.student.backbone.named_parameters()}
    head = student_teacher.student.heads["patch"].mlp[0].weight.clone()
    hp = hyperparameters(freeze_backbone=True)
    assert training_step(
        student_teacher, [tiny_views(2)], plain_sgd(student_teacher), hp, OptimizerConfig(clip=0, clip_mode="tensor")
    ).finite
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


def test_everything_outside_the_backbone_has_a_rate_of_its_own(tmp_path: Path) -> None:
    for model in MODELS:
        file = weights_of(tmp_path, model=model, objective="none")
        config = RunConfig().override({"model": "init", "init": file, "method": "moby", "objective": "selfpatch+sere"})
        config = config.override({"crops": CROPS, "moby": COMPONENTS["moby"], "selfpatch": COMPONENTS["selfpatch"]})
        config = config.override({"batch_size": 4, "optimizer": {"layer_decay": 0.5, "head_lr_scale": 10}})
        student_teacher, _ = make_student_teacher(config)
        backbone = student_teacher.student.backbone
        optimizer = make_optimizer(config, student_teacher)
        scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
        assert {scales[id(p)] for p in student_teacher.student.pool.norm.parameters()} == {1.0}
        for name, parameter in backbone.named_parameters():
            assert scales[id(parameter)] == 0.5 ** (backbone.num_layers + 1 - backbone.layer_of(name))
        outside = [
            (name, p)
            for name, p in student_teacher.named_parameters()
            if p.requires_grad and not name.startswith(("student.backbone.", "student.pool.norm."))
        ]
        parts = {"student.pool.query", "student.heads.projector", "objectives.moby.predictor", "student.heads.patch"}
        assert all(any(name.startswith(part) for name, _ in outside) for part in parts)
        assert {scales[id(p)] for _, p in outside} == {10.0}
        set_hyperparameters(optimizer, hyperparameters(lr=0.5))
        assert {group["lr"] for group in optimizer.param_groups if group["lr_scale"] == 10} == {5.0}


def test_the_rate_of_heads_is_that_of_the_backbone_unless_set() -> None:
    optimizer = make_optimizer(tiny_config(), tiny_student_teacher())
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *[(name, model) for name in ("continue-pretraining", "post-train-patches") for model in MODELS],
        ("post-train-lora", "vit_tiny"),
        ("post-train-lora", "swin_tiny"),
    ],
)
def test_the_recipes_go_on_from_any_family_that_their_header_names(tmp_path: Path, name: str, model: str) -> None:
    backbone = {"backbone": {"depth": 7}} if model == "vit_tiny" else {}
    file = weights_of(tmp_path, model=model, objective="none", **backbone)
    scale = 1 if model == "vit_tiny" else 2
    method = {"method": "dino"} if model in ("resnet50", "convnext_tiny") else {}  # which cannot be masked
    config = load_recipe(name).override({"init": file, **method})
    config = config.override({"crops": {"global_size": 16 * scale, "local_size": 12 * scale, "num_local": 2}})
    config = config.override({"pairs": {"clean_size": 16 * scale, "contained_size": 12 * scale}})
    if name == "post-train-patches":
        config = config.override({"backbone": {"frozen_blocks": -1}})
    elif name == "post-train-lora":
        config = config.override({"lora": {"last_blocks": 2}})
    else:
        config = config.override({config.method: {"num_prototypes": 16, "hidden_dim": 8, "bottleneck_dim": 4}})
    student_teacher, report = make_student_teacher(config)
    assert report is not None
    assert not report.missing
    optimizer = make_optimizer(config, student_teacher)
    for step in (0, 1):
        hp = hyperparameters(step, lr=1e-3, freeze_backbone=step < config.optimizer.freeze_backbone_epochs)
        outcome = training_step(
            student_teacher, [tiny_views(2, scale=scale)], optimizer, hp, OptimizerConfig(clip=0.3, clip_mode="tensor")
        )
        assert outcome.finite


def test_a_backbone_without_heads_is_not_frozen() -> None:
    settings = {"method": "none", "objective": "sere_pairs", "optimizer": {"freeze_backbone_epochs": 0.5}}
    with pytest.raises(ValueError, match=r"is 0.5, but sere_pairs trains nothing outside the backbone; leave it out"):
        make_optimizer(tiny_config(**settings), tiny_student_teacher(**settings))


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


@pytest.mark.slow
def test_a_run_with_adapters_resumes_exactly_and_gives_merged_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = weights_of(tmp_path, objective="none")
    noise = np.random.default_rng(0).integers(256, size=(9, 24, 24, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    settings: dict[str, Any] = {
        "data": str(tmp_path / "photos"), "out": str(tmp_path / "run"), "model": "init", "init": file, "epochs": 2,
        "crops": {"global_size": 16, "local_size": 12, "num_local": 1}, "batch_size": 4, "device": "cpu",
        "lora": {"rank": 2, "last_blocks": 1}, "checkpoint": {"every_steps": 1}, "precision": "fp32",
        "loader": {"workers": 0, "held_out": 1}, "objective": "selfpatch", "optimizer": {"warmup_epochs": 0},
        **COMPONENTS_OF_DINO,
    }  # fmt: skip
    report = selfpatch.pretrain(RunConfig(), dry_run=True, **settings)
    run = RunDirectory.open(selfpatch.pretrain(RunConfig(), **settings))
    assert "LoRA of rank 2 in 4 layers: " in " ".join(capsys.readouterr().out.split())
    assert report.memory["gradients"] * 2 == report.memory["optimizer state"]
    newest = run.checkpoints.newest()
    assert newest is not None
    expected = torch.load(newest, weights_only=True)
    assert any(name.endswith("lora_a") for name in expected["pretrainer"])

    newest.unlink()
    selfpatch.resume(run.path, device="cpu")
    again = torch.load(newest, weights_only=True)
    torch.testing.assert_close(again["pretrainer"], expected["pretrainer"], rtol=0, atol=0)
    encoders = [selfpatch.load(source, device="cpu") for source in (run.path, run.exported_backbone)]
    images, trained = torch.randn(2, 3, 16, 24), [encoder.patches for encoder in encoders]
    torch.testing.assert_close(trained[0](images), trained[1](images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(trained[0](images), selfpatch.load(file, device="cpu").patches(images))
    assert selfpatch.load(f"untrained:{run.path}", device="cpu").patches(images).isfinite().all()
