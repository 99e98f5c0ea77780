"""Weights in and out: released checkpoints in every form they come in, what is refused, and exports that timm loads."""

from __future__ import annotations

import argparse
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfpatch.api.encoder import open_encoder
from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.checkpoints.load import load_backbone, load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import AveragePool
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD, normalise
from selfpatch.training.online_eval import teacher_encoder
from tests.helpers.tiny import snapshot, tiny_config, tiny_student_teacher

HEADS = 3
"""Of the golden networks; a checkpoint does not tell."""


def golden(golden_dir: Path, bundle: str, which: str = "initial") -> dict[str, Any]:
    return torch.load(golden_dir / "mini" / bundle / f"{which}.pth", weights_only=True)


def images_of(golden_dir: Path, bundle: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The global crops of step 0 as the network's input [2B, 3, S, S], and what was recorded of it."""
    tensors = load_file(golden_dir / "mini" / bundle / "tensors.safetensors")
    crops = torch.cat([tensors["step0.crop0"], tensors["step0.crop1"]])
    return normalise(crops, IMAGENET_MEAN, IMAGENET_STD), tensors


def flat(maps: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, N, D]."""
    return maps.flatten(2).transpose(1, 2)


def plainly_named(state: dict[str, Tensor], prefix: str = "backbone.") -> dict[str, Tensor]:
    """A backbone's weights under timm's own names, as the backbone-only files of DINO hold them."""
    bare = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name.startswith(prefix)}


FORMS = {
    "full file": lambda c: c,
    "full file with options": lambda c: {
        **c,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4, local_crops_scale=(0.05, 0.25)),
    },
    "backbone alone": lambda c: plainly_named(c["teacher"]),
    "module prefix": lambda c: {f"module.{name}": tensor for name, tensor in c["teacher"].items()},
    "wrapped as state_dict": lambda c: {"state_dict": plainly_named(c["teacher"]), "epoch": 3},
    "wrapped as model": lambda c: {"model": c["teacher"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_released_dino_checkpoint_gives_the_recorded_features(golden_dir: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / "dino.pth"
    torch.save(FORMS[form](golden(golden_dir, "dino")), file)
    encoder, report = load_encoder(str(file), LoadConfig(num_heads=HEADS))
    images, tensors = images_of(golden_dir, "dino")
    recorded = tensors["step0.teacher.intermediate_last"]  # [2B, 1 + N, D], after the final norm
    torch.testing.assert_close(encoder.image(images), recorded[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat(encoder.patches(images)), recorded[:, 1:], rtol=1e-4, atol=1e-5)
    assert not report.missing
    assert not report.unexpected
    assert not encoder.training


def test_a_released_selfpatch_checkpoint_gives_the_recorded_features(golden_dir: Path) -> None:
    encoder, report = load_encoder(str(golden_dir / "mini" / "selfpatch" / "initial.pth"), LoadConfig(num_heads=HEADS))
    images, tensors = images_of(golden_dir, "selfpatch")
    torch.testing.assert_close(
        flat(encoder.patches(images)), tensors["step0.teacher.patch_features_global"], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        encoder.image(images), tensors["step0.teacher.aggregated_global"][:, 0], rtol=1e-4, atol=1e-5
    )
    assert all(name.startswith("heads.") for name in report.left_out)
    assert len(report.left_out) == 2 * 8


@pytest.mark.parametrize("bundle", ["dino", "selfpatch"])
def test_the_side_that_is_asked_for_is_read(golden_dir: Path, bundle: str) -> None:
    file, checkpoint = golden_dir / "mini" / bundle / "final.pth", golden(golden_dir, bundle, "final")
    for side in ("teacher", "student"):
        encoder, _ = load_encoder(str(file), LoadConfig(side=side, num_heads=HEADS))
        loaded = dict(encoder.backbone.trunk.state_dict())
        expected = plainly_named(checkpoint[side])
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(
        checkpoint["student"]["module.backbone.pos_embed"], checkpoint["teacher"]["backbone.pos_embed"]
    )


def test_raw_patches_are_those_before_the_final_norm(golden_dir: Path) -> None:
    file = str(golden_dir / "mini" / "dino" / "initial.pth")
    images, _ = images_of(golden_dir, "dino")
    raw, _ = load_encoder(file, LoadConfig(num_heads=HEADS), normed_patches=False)
    normed, _ = load_encoder(file, LoadConfig(num_heads=HEADS))
    torch.testing.assert_close(normed.backbone.trunk.norm(flat(raw.patches(images))), flat(normed.patches(images)))


def test_a_checkpoint_names_an_untrained_network_of_its_own_form(golden_dir: Path) -> None:
    file = str(golden_dir / "mini" / "selfpatch" / "initial.pth")
    before = torch.get_rng_state()
    untrained, provenance = open_encoder(f"untrained:{file}", "cpu", load_options={"num_heads": HEADS})
    again, _ = open_encoder(f"untrained:{file}", "cpu", load_options={"num_heads": HEADS, "normed_patches": False})
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left as they are"
    trained, _ = load_encoder(file, LoadConfig(num_heads=HEADS))
    ours, theirs = untrained.state_dict(), trained.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.items())
    embedding = "backbone.trunk.patch_embed.proj.weight"
    assert not torch.equal(ours[embedding], theirs[embedding])
    assert (untrained.normed_patches, again.normed_patches) == (True, False)
    assert provenance is not None
    assert provenance.source == f"untrained:{file}"
    images, _ = images_of(golden_dir, "selfpatch")
    assert not torch.allclose(untrained.patches(images), trained.patches(images), atol=0.1)


class Malicious:
    """What a hostile checkpoint holds: unpickling it runs a function of the attacker's choice."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_is_refused_and_not_run(golden_dir: Path, tmp_path: Path, zipped: bool) -> None:
    trace, file = tmp_path / "was-run", tmp_path / "bad.pth"
    torch.save({**golden(golden_dir, "dino"), "args": Malicious(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"bad.pth holds more than tensors.* could run code; save its state dict as .safetensors"
    ):
        load_encoder(str(file))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists(), "the object does what it is meant to, where it is unpickled"


def test_files_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    contents = {"text.pth": b"not a checkpoint", "empty.pth": b"", "text.safetensors": b"neither is this"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_weights(str(tmp_path / name))
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    with pytest.raises(ValueError, match=r"number.pth holds no state dict; tensors by name are needed"):
        read_weights(str(tmp_path / "number.pth"))
    with pytest.raises(ValueError, match=r"no weights at 'nowhere.pth'; use a run directory, a checkpoint file"):
        read_weights("nowhere.pth")
    with pytest.raises(ValueError, match="is no run"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.bias": torch.zeros(3)},
            "holds no plain ViT, Swin, ResNet or ConvNeXt; its keys are conv1.weight, fc.bias",
        ),
        (
            {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "pos_embed": torch.zeros(1, 7, 8)},
            "position embeddings for 7 patches, which is no square",
        ),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, state: dict[str, Tensor], message: str) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        load_encoder(str(tmp_path / "other.pth"))


def test_a_number_of_heads_that_does_not_divide_the_width_is_refused(golden_dir: Path) -> None:
    with pytest.raises(ValueError, match="width 24 cannot be split into 5 heads"):
        load_encoder(str(golden_dir / "mini" / "dino" / "initial.pth"), LoadConfig(num_heads=5))


def test_a_tensor_of_another_shape_is_refused_even_in_part(golden_dir: Path) -> None:
    weights = read_weights(str(golden_dir / "mini" / "dino" / "initial.pth"), LoadConfig(num_heads=HEADS))
    wider = build_backbone(ViTConfig(embed_dim=48, depth=2, num_heads=3, patch_size=4))
    for allow_partial in (False, True):
        with pytest.raises(ValueError, match=r"is of another architecture: .* is \[.*24.*\] there and \[.*48.*\] here"):
            load_backbone(wider, weights, allow_partial=allow_partial)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_partial_weights_need_permission(golden_dir: Path, tmp_path: Path, change: str) -> None:
    state = plainly_named(golden(golden_dir, "dino")["teacher"])
    if change == "missing":
        del state["blocks.1.mlp.fc1.bias"]
    else:
        state["blocks.1.ls1.gamma"] = torch.ones(24)
    file = tmp_path / "partial.pth"
    torch.save(state, file)
    named = {"missing": r"1 missing \(.*fc1.bias\)", "unexpected": r"1 unexpected \(.*ls1.gamma\)"}[change]
    with pytest.raises(
        ValueError, match=rf"partial.pth: \d+ keys matched, {named}; give --allow-partial to load what matches"
    ):
        load_encoder(str(file), LoadConfig(num_heads=HEADS))
    _, report = load_encoder(str(file), LoadConfig(num_heads=HEADS, allow_partial=True))
    assert len(getattr(report, change)) == 1


@pytest.mark.parametrize("name", ["norm_pre.weight", "dist_token", "blocks.0.attn.q_norm.weight", "reg_token"])
def test_unknown_parts_of_a_trunk_are_refused(golden_dir: Path, tmp_path: Path, name: str) -> None:
    """Left out silently, the features would be wrong with nobody told."""
    file = tmp_path / "other.pth"
    torch.save({**plainly_named(golden(golden_dir, "dino")["teacher"]), name: torch.ones(24)}, file)
    with pytest.raises(ValueError, match=rf"1 unexpected \(backbone\.trunk\.{name}\)"):
        load_encoder(str(file), LoadConfig(num_heads=HEADS))


def test_the_report_counts_and_names(golden_dir: Path) -> None:
    file = str(golden_dir / "mini" / "dino" / "initial.pth")
    _, report = load_encoder(file, LoadConfig(num_heads=HEADS))
    count = len(plainly_named(golden(golden_dir, "dino")["teacher"]))
    assert str(report) == (
        f"{file}: {count} keys matched, 8 left out "
        "(heads.image.mlp.0.weight, heads.image.mlp.0.bias, heads.image.mlp.2.weight, heads.image.mlp.2.bias, ...)"
    )


def test_a_trunk_under_a_pool_starts_from_dino(golden_dir: Path) -> None:
    """CLS token, its position and the final norm have no place there; the rest is taken over whole."""
    weights = read_weights(str(golden_dir / "mini" / "dino" / "initial.pth"), LoadConfig(num_heads=HEADS))
    backbone = build_backbone(weights.config.for_pool())
    report = load_backbone(backbone, weights)
    state = plainly_named(golden(golden_dir, "dino")["teacher"])
    assert torch.equal(backbone.trunk.pos_embed, state["pos_embed"][:, 1:])
    assert torch.equal(backbone.trunk.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])
    assert not report.missing
    assert {"trunk.cls_token", "trunk.norm.weight", "trunk.norm.bias"} <= {
        name.removeprefix("backbone.") for name in report.left_out
    }


@pytest.mark.parametrize("bundle", ["dino", "selfpatch"])
def test_exports_load_into_timm(golden_dir: Path, tmp_path: Path, bundle: str) -> None:
    encoder, _ = load_encoder(str(golden_dir / "mini" / bundle / "final.pth"), LoadConfig(num_heads=HEADS))
    state, metadata = export_state(encoder)
    file = tmp_path / "exported.safetensors"
    save_file(state, file, metadata)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=56, patch_size=4, embed_dim=24, depth=2, num_heads=HEADS, num_classes=0,
        class_token=bundle == "dino", global_pool="token" if bundle == "dino" else "", final_norm=bundle == "dino",
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    loaded = load_file(file)
    theirs.load_state_dict({name: tensor for name, tensor in loaded.items() if not name.startswith("pool.")})
    assert any(name.startswith("pool.") for name in loaded) == (bundle == "selfpatch")
    images, _ = images_of(golden_dir, bundle)
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, theirs.num_prefix_tokens :]
    torch.testing.assert_close(flat(encoder.patches(images)), tokens, rtol=1e-4, atol=1e-5)

    again, report = load_encoder(str(file))  # heads, sizes and pool are in the file
    assert not report.left_out
    assert torch.equal(again.patches(images), encoder.patches(images))
    assert torch.equal(again.image(images), encoder.image(images))
    assert json.loads(metadata["shape"])["num_heads"] == HEADS


def test_an_average_pool_is_exported_too(tmp_path: Path) -> None:
    config = ViTConfig(embed_dim=8, depth=1, num_heads=2, patch_size=4, grid=3).for_pool()
    encoder = BranchEncoder(build_backbone(config), AveragePool(8)).eval()
    torch.nn.init.normal_(encoder.pool.norm.weight)
    save_file(*[export_state(encoder)[0], tmp_path / "e.safetensors", export_state(encoder)[1]])
    again, _ = load_encoder(str(tmp_path / "e.safetensors"))
    images = torch.randn(2, 3, 16, 8)
    assert torch.equal(again.image(images), encoder.image(images))


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_run_directory_gives_its_newest_checkpoint(tmp_path: Path, side: str) -> None:
    student_teacher = tiny_student_teacher()
    for parameter in student_teacher.teacher.parameters():
        parameter.mul_(0.5)
    run = RunDirectory.create(tmp_path / "run", tiny_config().to_dict())
    with pytest.raises(ValueError, match="has no checkpoint yet; wait for the first one"):
        load_encoder(str(run.path))
    config = student_teacher.student.backbone.config.to_dict()
    old = {name: torch.zeros_like(tensor) for name, tensor in snapshot(student_teacher).items()}
    run.checkpoints.save({"pretrainer": old, "shape": config}, step=9, keep=5)
    run.checkpoints.save({"pretrainer": snapshot(student_teacher), "shape": config}, step=10, keep=5)
    encoder, report = load_encoder(str(run.path), LoadConfig(side=side))
    branch, images = getattr(student_teacher, side).eval(), torch.randn(2, 3, 16, 12)
    assert encoder.backbone.config == branch.backbone.config
    torch.testing.assert_close(encoder.patches(images), branch.backbone(images).patches.permute(0, 3, 1, 2).detach())
    torch.testing.assert_close(
        encoder.image(images), branch.pool(branch.backbone(images).raw_patches.flatten(1, 2)).detach()
    )
    assert not report.missing


def test_an_exported_run_without_checkpoints_still_loads(tmp_path: Path) -> None:
    encoder = BranchEncoder(
        build_backbone(ViTConfig(embed_dim=8, depth=1, num_heads=2, patch_size=4, grid=3)), None
    ).eval()
    run = RunDirectory.create(tmp_path / "run", tiny_config().to_dict())
    write_safetensors(run.exported_backbone, *export_state(encoder))
    again, report = load_encoder(str(run.path))
    assert report.source == str(run.path)
    images = torch.randn(1, 3, 12, 12)
    assert torch.equal(again.patches(images), encoder.patches(images))


def test_positions_can_be_interpolated_another_way(golden_dir: Path) -> None:
    file, images = str(golden_dir / "mini" / "dino" / "initial.pth"), torch.randn(1, 3, 24, 32)
    released, by_size = (
        load_encoder(file, LoadConfig(num_heads=HEADS, position_embedding=name))[0] for name in ("released", "size")
    )
    default, _ = load_encoder(file, LoadConfig(num_heads=HEADS))
    assert torch.equal(default.patches(images), released.patches(images))
    assert not torch.allclose(default.patches(images), by_size.patches(images), atol=1e-4)


def test_the_projection_head_comes_with_the_encoder(golden_dir: Path, tmp_path: Path) -> None:
    """From released checkpoints and from runs; it is no part of the encoder's own state."""
    for bundle, name in (("dino", "head"), ("sere", "head"), ("selfpatch", "c_head")):
        teacher = golden(golden_dir, bundle)["teacher"]
        encoder, _ = load_encoder(str(golden_dir / "mini" / bundle / "initial.pth"), LoadConfig(num_heads=HEADS))
        assert torch.equal(encoder.projection["mlp.2.weight"], teacher[f"{name}.mlp.2.weight"])
        assert torch.equal(encoder.projection["last_layer.weight_v"], teacher[f"{name}.last_layer.weight_v"])
        assert not any("mlp.2.weight" in key and "blocks" not in key for key in encoder.state_dict())
    plain = tmp_path / "backbone.pth"
    torch.save(plainly_named(golden(golden_dir, "dino")["teacher"]), plain)
    assert not load_encoder(str(plain), LoadConfig(num_heads=HEADS))[0].projection
    student_teacher = tiny_student_teacher()
    run = RunDirectory.create(tmp_path / "run", tiny_config().to_dict())
    config = student_teacher.teacher.backbone.config.to_dict()
    run.checkpoints.save({"pretrainer": snapshot(student_teacher), "shape": config}, step=10, keep=5)
    head = student_teacher.teacher.heads["image"].state_dict()
    loaded = load_encoder(str(run.path))[0].projection
    assert loaded.keys() == head.keys()
    assert all(torch.equal(loaded[key], head[key]) for key in head)
    untrained = teacher_encoder(student_teacher.teacher).projection
    assert all(torch.equal(untrained[key], head[key]) for key in head)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(golden_dir: Path, tmp_path: Path, value: float) -> None:
    state = plainly_named(golden(golden_dir, "dino")["teacher"])
    state["blocks.1.norm1.weight"][3] = value
    state["head.mlp.0.weight"] = torch.full((2, 2), value)  # a head, which nothing here uses
    torch.save(state, tmp_path / "broken.pth")
    config = LoadConfig(num_heads=HEADS)
    message = (
        r"broken.pth holds values that are not finite in 1 of \d+ tensors \(backbone.trunk.blocks.1.norm1.weight\)"
    )
    with pytest.raises(ValueError, match=message):
        load_encoder(str(tmp_path / "broken.pth"), config)
    weights = read_weights(str(tmp_path / "broken.pth"), config)
    with pytest.raises(ValueError, match=message):
        load_backbone(build_backbone(weights.config), weights)


def test_a_run_is_loaded_without_a_word_on_its_heads(tmp_path: Path) -> None:
    student_teacher = tiny_student_teacher()
    run = RunDirectory.create(tmp_path / "run", tiny_config().to_dict())
    config = student_teacher.student.backbone.config.to_dict()
    run.checkpoints.save({"pretrainer": snapshot(student_teacher), "shape": config}, step=1, keep=1)
    _, report = load_encoder(str(run.path))
    assert any(key.startswith("heads.") for key in report.left_out)
    assert str(report) == f"{run.path}: {len(report.matched)} keys matched"
