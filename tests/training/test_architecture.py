"""The backbone that a run's settings name: rotary positions and registers as options, and registers for old weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.run import RunConfig
from selfpatch.models.backbones.build import MODELS
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ViTConfig
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.factory import backbone_request, make_student_teacher
from tests.helpers.released_forms import random_backbone
from tests.helpers.tiny import tiny_config

IMAGES = torch.randn(2, 3, 12, 20, generator=torch.manual_seed(1))


def test_dinov3s_size_is_a_vit_with_rope_registers_and_layer_scale() -> None:
    settings = {"rope": True, "registers": 4, "layer_scale": True}
    by_options = backbone_request(RunConfig().override({"backbone": settings})).named()
    assert isinstance(by_options, ViTConfig)
    assert by_options == MODELS["vit_small_dinov3"]


@pytest.mark.parametrize("objective", ["none", "selfpatch"])
def test_a_vit_with_rope_and_registers(objective: str) -> None:
    config = tiny_config(objective=objective, backbone={"rope": True, "registers": 3})
    backbone = make_student_teacher(config)[0].student.backbone
    assert isinstance(backbone, ViT)
    assert backbone.trunk.pos_embed is None
    assert backbone.trunk.reg_token.shape == (1, 3, 16)
    tokens = backbone(IMAGES)
    assert tokens.patches.shape == (2, 3, 5, 16)
    assert (tokens.cls is None) == (objective == "selfpatch")
    trunk = backbone.trunk
    before = trunk.reg_token.detach().clone()
    with torch.no_grad():
        trunk.reg_token.add_(torch.randn(1, 3, 16))
    assert not torch.allclose(backbone(IMAGES).patches, tokens.patches)
    with torch.no_grad():
        trunk.reg_token.copy_(before)
    torch.testing.assert_close(backbone(IMAGES).patches, tokens.patches)


@pytest.mark.parametrize("model", ["swin_tiny", "resnet50", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize(("name", "value"), [("rope", True), ("registers", 2), ("layer_scale", True)])
def test_other_networks_have_neither(model: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"backbone.{name} is {value}, but .*; leave it out"):
        backbone_request(RunConfig(model=model).override({"backbone": {name: value}})).named()


@pytest.mark.parametrize("model", ["init", "vit_tiny"])
@torch.no_grad()
def test_registers_are_added_to_weights_without(tmp_path: Path, model: str) -> None:
    donor = make_student_teacher(tiny_config(objective="none", seed=5))[0].student
    assert isinstance(donor.backbone, ViT)
    state, metadata = export_state(BranchEncoder(donor.backbone, None))
    save_file(state, tmp_path / "w.safetensors", metadata)
    sizes = {} if model == "vit_tiny" else {"patch_size": None, "backbone": {"drop_path": 0.0, "registers": 2}}
    settings = {"objective": "none", "backbone": {"registers": 2}, "init": str(tmp_path / "w.safetensors"), **sizes}
    student_teacher, report = make_student_teacher(tiny_config(**settings, model=model, seed=6))
    assert "the register tokens are new" in str(report)
    assert not report.missing  # type: ignore[union-attr]
    backbone = student_teacher.student.backbone
    assert isinstance(backbone, ViT)
    images = torch.randn(1, 3, 16, 16)
    old, new = (part._block_input(part.embed(images)) for part in (donor.backbone, backbone))
    torch.testing.assert_close(torch.cat([new[:, :1], new[:, 3:]], dim=1), old)
    assert student_teacher.teacher.backbone.config == backbone.config


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (
            ViTConfig(embed_dim=16, depth=2, num_heads=2, patch_size=4, grid=4, norm_eps=0.1, num_registers=1),
            {"model": "vit_tiny", "backbone": {"registers": 1}},
        ),
        (
            ViTConfig(embed_dim=16, depth=2, num_heads=2, patch_size=4, rope=True, rope_base=7.0),
            {"model": "vit_tiny", "backbone": {"rope": True}},
        ),
        (ConvNeXtConfig(embed_dim=8, depths=(1, 1), norm_eps=0.1), {"model": "convnext_tiny"}),
    ],
    ids=["epsilon", "base of rotations", "epsilon of a ConvNeXt"],
)
@torch.no_grad()
def test_a_named_model_computes_what_its_initial_weights_do(
    tmp_path: Path, config: AnyBackboneConfig, settings: dict[str, Any]
) -> None:
    state, metadata = export_state(BranchEncoder(random_backbone(config, seed=5), None))
    weights = str(tmp_path / "w.safetensors")
    # Files of transformers have no periods of rotations.
    save_file({name: tensor for name, tensor in state.items() if not name.endswith("rope.periods")}, weights, metadata)
    student_teacher, _ = make_student_teacher(tiny_config(objective="none", init=weights, **settings))
    images = torch.randn(1, 3, 32, 48)
    expected = load_encoder(weights)[0].backbone(images)
    torch.testing.assert_close(student_teacher.teacher.backbone.eval()(images).patches, expected.patches)
