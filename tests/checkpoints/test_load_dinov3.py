"""DINOv3 ViTs as timm and transformers write them; the released form is one of `tests.helpers.released_forms`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.models.backbones.config import ViTConfig
from tests.helpers.released_forms import dinov3_as_released, random_backbone, trunk_state

IMAGES = torch.randn(2, 3, 24, 40, generator=torch.manual_seed(1))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Change every parameter, so that each matters."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@torch.no_grad()
def assert_tokens(file: Path, expected: torch.Tensor, **changes: Any) -> ViTConfig:
    """Compare tokens [B, 1 + registers + N, D] after the final norm with those of the encoder that a file gives."""
    encoder, report = load_encoder(str(file))
    config = encoder.backbone.config
    assert isinstance(config, ViTConfig)
    assert config.rope
    assert not report.missing
    assert not report.unexpected
    tokens = encoder.backbone(IMAGES)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-4, atol=1e-5)
    patches = expected[:, 1 + config.num_registers :]
    torch.testing.assert_close(tokens.patches.flatten(1, 2), patches, rtol=1e-4, atol=1e-5)
    return config


@pytest.mark.parametrize("name", ["small", "small_plus", "huge_plus"])
@pytest.mark.parametrize("bias", ["", "_qkvb"])
def test_timms_files_give_timms_features(name: str, bias: str, tmp_path: Path) -> None:
    arguments = {"embed_dim": 128, "num_heads": 2, "depth": 2, "patch_size": 8, "num_classes": 0}
    model: Any = randomised(timm.create_model(f"vit_{name}_patch16_dinov3{bias}", **arguments))
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    with torch.no_grad():
        config = assert_tokens(tmp_path / "timm.safetensors", model.forward_features(IMAGES))
    assert config.mlp == ("gelu" if name == "small" else "swiglu")
    assert (config.num_registers, config.grid, config.layer_scale) == (4, 32, True)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_hugging_faces_models_and_files_give_its_features(gated: bool, bias: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=8
    )
    config.use_gated_mlp, config.hidden_act, config.num_register_tokens = gated, "silu" if gated else "gelu", 3
    config.query_bias = config.value_bias = bias
    model = randomised(transformers.DINOv3ViTModel(config))
    model.save_pretrained(tmp_path)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "memory.safetensors")
    with torch.no_grad():
        expected = model(IMAGES).last_hidden_state
    older = {k.replace("model.layer.", "layer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(older, tmp_path / "hub.safetensors")
    for name in ("model", "memory", "hub"):
        found = assert_tokens(tmp_path / f"{name}.safetensors", expected)
        assert (found.mlp_width, found.num_registers) == (96, 3)


def test_periods_of_a_released_file_tell_the_width_of_a_head(tmp_path: Path) -> None:
    """Golden bundles have heads of 16 channels, the ViT-7B of 128; other files are taken to have 64."""
    config = ViTConfig(embed_dim=64, depth=1, num_heads=4, patch_size=8, rope=True, num_registers=1, layer_scale=True)
    file = tmp_path / "released.pth"
    torch.save(dinov3_as_released(trunk_state(random_backbone(config))), file)
    found = read_weights(str(file)).config
    assert found.num_heads == 4
    with pytest.raises(ValueError, match=r"rope.periods is \[4\] there and \[8\] here"):
        load_encoder(str(file), LoadConfig(num_heads=2))


def test_a_bias_of_keys_that_a_released_file_masks_is_cleared(tmp_path: Path) -> None:
    config = ViTConfig(embed_dim=64, depth=1, num_heads=1, patch_size=8, rope=True, num_registers=1, layer_scale=True)
    released = dinov3_as_released(trunk_state(random_backbone(config)))
    assert released["blocks.0.attn.qkv.bias"][64:128].all()
    torch.save(released, tmp_path / "released.pth")
    bias = read_weights(str(tmp_path / "released.pth")).state["backbone.trunk.blocks.0.attn.qkv.bias"]
    assert not bias[64:128].any()
    assert bias[:64].all()
