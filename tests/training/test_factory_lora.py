"""Runs with low-rank adapters: what learns, what stays, and what a checkpoint and an export hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.checkpoints.checkpoint_store import save_atomically
from selfpatch.checkpoints.export.export import export
from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.run import RunConfig
from selfpatch.config.sections import OptimizerConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.layers.lora import LoraLinear
from selfpatch.training.factory import make_optimizer, make_student_teacher
from selfpatch.training.online_eval import teacher_encoder
from selfpatch.training.optim import set_hyperparameters
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step
from tests.helpers.tiny import COMPONENTS, MODELS, hyperparameters, tiny_student_teacher, tiny_views

SIZES: dict[str, dict[str, Any]] = {
    "vit_tiny": {},
    "swin_tiny": MODELS["swin_tiny"],
    "vit_small_dinov3": {"patch_size": 8, "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0}},
}


def run_config(folder: Path, model: str, **settings: Any) -> RunConfig:
    """Settings of a run with adapters of rank 2 from a file of weights, written into the folder."""
    donor, scale = tiny_student_teacher(model=model, objective="none", **SIZES[model]), 1 if model == "vit_tiny" else 2
    state, metadata = export_state(BranchEncoder(donor.student.backbone, None))
    save_file(state, folder / "donor.safetensors", metadata)
    crops = {"global_size": 16 * scale, "local_size": 12 * scale, "num_local": 2}
    pairs = {"num_clean": 1, "clean_size": 16 * scale, "num_contained": 2, "contained_size": 12 * scale}
    base = {"model": "init", "init": str(folder / "donor.safetensors"), "batch_size": 4, "crops": crops, "pairs": pairs}
    config = RunConfig().override(base | {"method": "ibot", "objective": "selfpatch", "lora": {"rank": 2}})
    config = config.override(settings)
    return config.override({name: COMPONENTS[name] for name in config.used})


def steps(student_teacher: StudentTeacher, optimizer: torch.optim.Optimizer, model: str, numbers: range) -> None:
    for step in numbers:
        torch.manual_seed(step)  # of drop path
        hp, views = hyperparameters(step, lr=0.05), tiny_views(4, step, scale=1 if model == "vit_tiny" else 2)
        set_hyperparameters(optimizer, hp)
        assert training_step(student_teacher, [views], optimizer, hp, OptimizerConfig()).finite


@pytest.mark.parametrize("model", SIZES)
def test_adapters_learn_and_end_up_in_the_weights(tmp_path: Path, model: str) -> None:
    config = run_config(tmp_path, model)
    student_teacher, _ = make_student_teacher(config)
    images = torch.randn(2, 3, 32, 48, generator=torch.manual_seed(0))
    before = load_encoder(config.init or "")[0].patches(images)
    assert torch.equal(teacher_encoder(student_teacher.teacher).eval().patches(images), before), (
        "nothing changes at step 0"
    )

    backbone = student_teacher.student.backbone
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    norms = {name for name, _ in backbone.named_parameters() if ".norm" in name and "patch_embed" not in name}
    adapters = {name for name, _ in backbone.named_parameters() if name.endswith(("lora_a", "lora_b"))}
    linears = sum(isinstance(part, LoraLinear) for part in backbone.modules())
    assert trained == norms | adapters | {"mask_token"}
    assert len(adapters) == 2 * linears == 2 * 4 * (2 if model != "swin_tiny" else sum(backbone.config.depths))
    at_first = {name: tensor.clone() for name, tensor in student_teacher.state_dict().items()}

    optimizer = make_optimizer(config, student_teacher.train())
    steps(student_teacher, optimizer, model, range(2))
    for name, parameter in student_teacher.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    teacher = dict(student_teacher.teacher.backbone.named_parameters())
    for name, parameter in backbone.named_parameters():
        moved = not torch.equal(teacher[name], at_first[f"teacher.backbone.{name}"])
        assert moved == parameter.requires_grad, name
        assert (teacher[name] is parameter) != parameter.requires_grad, "the teacher shares what is frozen"

    checkpoint = {"pretrainer": student_teacher.state_dict(), "shape": backbone.config.to_dict(), "step": 2}
    save_atomically(checkpoint, tmp_path / "step.pt")
    resumed, _ = make_student_teacher(config, backbone.config)
    resumed.load_state_dict(checkpoint["pretrainer"])
    again = make_optimizer(config, resumed.train())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(student_teacher, optimizer, model, range(2, 3))
    steps(resumed, again, model, range(2, 3))
    torch.testing.assert_close(resumed.state_dict(), student_teacher.state_dict(), rtol=0, atol=0)

    save_atomically(checkpoint | {"pretrainer": resumed.state_dict()}, tmp_path / "step.pt")
    encoder = teacher_encoder(resumed.teacher).eval()
    expected = encoder.patches(images)
    assert not torch.allclose(expected, before, atol=1e-3)
    state, metadata = export_state(encoder)
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "run.safetensors", metadata)
    export(encoder, "timm" if model != "swin_tiny" else "safetensors", tmp_path / "exported")
    files = [tmp_path / "step.pt", tmp_path / "run.safetensors", *(tmp_path / "exported").glob("*.safetensors")]
    for file in files:
        loaded, report = load_encoder(str(file))
        assert not any("lora" in name for name in (*loaded.state_dict(), *report.matched, *report.left_out))
        torch.testing.assert_close(loaded.patches(images), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder.patches(images), expected), "an export leaves the network as it is"


def test_chosen_layers_of_the_last_blocks_have_adapters(tmp_path: Path) -> None:
    config = run_config(tmp_path, "vit_tiny", method="none", objective="selfpatch_pairs")
    lora = {"layers": ["qkv", "fc2"], "last_blocks": 1, "rank": 3, "alpha": 6}
    student_teacher, _ = make_student_teacher(config.override({"lora": lora}))
    backbone = student_teacher.student.backbone
    adapters = {name: part for name, part in backbone.named_modules() if isinstance(part, LoraLinear)}
    assert list(adapters) == ["trunk.blocks.1.attn.qkv", "trunk.blocks.1.mlp.fc2"]
    assert {(part.lora_a.shape[0], float(part.lora_scale)) for part in adapters.values()} == {(3, 2.0)}
    trained = {name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad and "blocks" in name}
    assert trained == {"1"}
    rates = {group["lr_scale"] for group in make_optimizer(
        config.override({"lora": lora, "optimizer": {"layer_decay": 0.5}}), student_teacher
    ).param_groups}  # fmt: skip
    assert rates == {1.0, 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"init": None, "model": "vit_tiny", "patch_size": 4},
            "lora.rank is 2, but there are no weights to adapt; give --init",
        ),
        ({"backbone": {"frozen_blocks": -1}}, "frozen_blocks is -1, but lora.rank is 2, .* by lora.last_blocks"),
        ({"lora": {"last_blocks": 3}}, "lora.last_blocks is 3, but the network has 2 blocks"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, settings: Any, message: str) -> None:
    config = run_config(tmp_path, "vit_tiny", method="none", objective="selfpatch_pairs")
    with pytest.raises(ValueError, match=message):
        make_student_teacher(config.override(settings))


def test_a_resnet_is_refused() -> None:
    backbone = tiny_student_teacher(model="resnet50", objective="none").student.backbone
    with pytest.raises(ValueError, match=r"lora.layers are qkv, but a resnet has no linear layers of these names"):
        backbone.add_adapters(2, 1.0, ["qkv"], None)
