"""Folders that transformers and timm write of their own models, and the features that those models give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_encoder
from selfpatch.core.dry_run import dry_run
from selfpatch.models.backbones.eva import Eva
from selfpatch.models.encoder import BranchEncoder
from tests.helpers import tiny_eva

VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}
VIT |= {"patch_size": 8, "layer_norm_eps": 1e-3}
PLAIN = {"intermediate_size": 48}
DINOV3 = {"intermediate_size": 48, "num_register_tokens": 3, "rope_theta": 30.0}
STAGES = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 2, 1, 1]}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", VIT | PLAIN),
    "ijepa": ("IJepaModel", VIT | PLAIN),
    "msn": ("ViTMSNModel", VIT | PLAIN),
    "mae": ("ViTMAEForPreTraining", VIT | PLAIN | {"mask_ratio": 0.0, "decoder_hidden_size": 16}),
    "dinov2": ("Dinov2Model", VIT),
    "dinov2 swiglu": ("Dinov2Model", VIT | {"use_swiglu_ffn": True}),
    "dinov2 registers": ("Dinov2WithRegistersModel", VIT | {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViTModel", VIT | DINOV3),
    "dinov3 swiglu": ("DINOv3ViTModel", VIT | DINOV3 | {"use_gated_mlp": True, "hidden_act": "silu"}),
    "swin": ("SwinModel", {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [2, 4, 8, 16], "window_size": 2}),
    "resnet": ("ResNetModel", {"embedding_size": 64, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 1, 1]}),
    "convnext": ("ConvNextModel", STAGES),
    "convnext v2": ("ConvNextV2Model", STAGES),
    "dinov3 convnext": ("DINOv3ConvNextModel", STAGES | {"layer_norm_eps": 1e-3}),
}
"""Model of transformers and settings, none of which is the default or the usual one."""

TIMM = (
    *tiny_eva.__all__,
    *("test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_dinov3_qkvb", "convnextv2_atto"),
)
"""Three of timm's class Eva; ViTs with CLS token, averaging, with registers and other norms, pooled by attention; one
with rotations; a ConvNeXt."""


@torch.no_grad()
def randomised(model: nn.Module) -> Any:
    """Change every parameter and statistic, so that each matters."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("position_embeddings"):
            noise = 0.1 * torch.randn_like(tensor)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


def saved_by_transformers(kind: str, folder: Path, **changes: Any) -> Any:
    """Write a model with random weights and its preprocessor, and return it."""
    transformers = pytest.importorskip("transformers")
    name, settings = TRANSFORMERS[kind]
    model_class = getattr(transformers, name)
    model = randomised(model_class(model_class.config_class(**(settings | changes))))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    return model


@torch.no_grad()
def features_of_transformers(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return image features [B, D] and patch features [B, D, h, w]."""
    if hasattr(model, "decoder"):  # of MAE, which shuffles its patches by this noise
        model = model.vit
        output = model(images, noise=torch.arange(16.0).expand(len(images), -1))
    else:
        output = model(images)
    tokens, name = output.last_hidden_state, type(model).__name__
    if tokens.ndim == 4:  # those of a ConvNext are not normed, but for the mean
        norm = model.layernorm if "ConvNext" in name else nn.Identity()
        return output.pooler_output.flatten(1), norm(tokens.movedim(1, -1)).movedim(-1, 1)
    h = images.shape[-2] // (32 if "Swin" in name or "ConvNext" in name else 8)
    patches = tokens[:, -h * h :].unflatten(1, (h, h)).movedim(-1, 1)
    return (tokens[:, 0] if tokens.shape[1] > h * h else patches.mean((2, 3))), patches


def assert_features(encoder: BranchEncoder, images: Tensor, image: Tensor, patches: Tensor) -> None:
    torch.testing.assert_close(encoder.patches(images), patches, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(encoder.image(images), image, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_folder_gives_its_features(kind: str, tmp_path: Path) -> None:
    model = saved_by_transformers(kind, tmp_path)
    side = 32 if TRANSFORMERS[kind][1].items() >= VIT.items() else 64
    images = torch.randn(2, 3, side, side, generator=torch.manual_seed(1))
    encoder, report = load_encoder(str(tmp_path))
    assert not report.missing
    assert not report.unexpected
    assert all(key.startswith(("decoder.", "pooler.")) for key in report.left_out if key != "backbone.mask_token")
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert_features(encoder, images, *features_of_transformers(model, images))
    with dry_run():
        for source in (tmp_path, tmp_path / "model.safetensors"):
            assert load_encoder(str(source))[0].backbone.config == encoder.backbone.config


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_base_patch32_siglip_gap_256", {}),
        ("vit_small_patch16_224", {"act_layer": "gelu_tanh"}),
        ("vit_small_patch16_224", {"act_layer": "quick_gelu"}),
    ],
)
def test_activations_of_timm_that_no_tensor_shows_are_refused(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """With other sizes than its name's, a model is told from its tensors, as one with GELU."""
    arguments = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64, **arguments}
    model = timm.create_model(name, num_classes=0, **arguments)
    save_for_hf(model, tmp_path, model_args=arguments)
    with pytest.raises(ValueError, match=r"with the activation '(gelu_tanh|quick_gelu)', which is not built here"):
        load_encoder(str(tmp_path))


REFUSED = {
    "activation": ("vit", {"hidden_act": "relu"}, "the activation 'relu', which is not built here"),
    "activation of a gate": ("dinov3", {"use_gated_mlp": True, "hidden_act": "gelu_new"}, "the activation 'gelu_new'"),
    "bias of keys": ("dinov3", {"key_bias": True}, "has a bias of keys"),
    "stride": ("resnet", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck being true"),
    "epsilon": ("swin", {"layer_norm_eps": 1e-3}, "layer_norm_eps being 0.001"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_variants_that_are_not_built_here_are_refused(case: str, tmp_path: Path) -> None:
    kind, changes, message = REFUSED[case]
    saved_by_transformers(kind, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_encoder(str(tmp_path))


@torch.no_grad()
def features_of_timm(model: Any, images: Tensor, encoder: BranchEncoder) -> tuple[Tensor, Tensor]:
    """Return image features [B, D] and patch features [B, D, h, w]; the norm of averaging models is for patches too."""
    tokens = model.forward_features(images)
    if tokens.ndim == 4:
        return model.forward_head(tokens, pre_logits=True), model.head.norm(tokens)
    grid = tuple(side // encoder.patch_size for side in images.shape[-2:])
    patches = model.fc_norm(tokens[:, model.num_prefix_tokens :])
    if isinstance(encoder.backbone, Eva) and model.global_pool == "avg":
        image = model.forward_head(tokens, pre_logits=True)
    else:
        image = model.fc_norm(tokens[:, 0]) if model.cls_token is not None else patches.mean(1)
    return image, patches.unflatten(1, grid).movedim(-1, 1)


def saved_by_timm(name: str, folder: Path, **arguments: Any) -> Any:
    """Write a model with random weights as timm pushes it to the Hub, and return it; its mean is an unusual one."""
    if "convnext" not in name:
        arguments["dynamic_img_size"] = True
    model = randomised(timm.create_model(name, **arguments))
    model.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    save_for_hf(model, folder, safe_serialization="both")
    return model


@pytest.mark.parametrize("name", TIMM)
def test_timms_folder_gives_its_features(name: str, tmp_path: Path) -> None:
    model = saved_by_timm(name, tmp_path, num_classes=0 if "dinov3" in name else 7)
    encoder, report = load_encoder(str(tmp_path))
    assert not report.missing
    assert not report.unexpected
    assert encoder.mean == (0.1, 0.2, 0.3)
    p = encoder.patch_size
    images = torch.randn(1, 3, 3 * p, 5 * p, generator=torch.manual_seed(1))  # positions are interpolated timm's way
    assert_features(encoder, images, *features_of_timm(model, images, encoder))
    with dry_run():
        for source in (tmp_path, tmp_path / "model.safetensors"):
            assert load_encoder(str(source))[0].backbone.config == encoder.backbone.config
    if name.startswith("test_") or name.endswith("of_tests"):  # of the others ours is built, not timm's
        with pytest.raises(ValueError, match=r"num_heads is 4, but .* has its own"):
            load_encoder(str(tmp_path), LoadConfig(num_heads=4))


@pytest.mark.slow
def test_a_resnet_of_timm_that_averages_before_it_strides_gives_its_features(tmp_path: Path) -> None:
    """A plain ResNet has the same tensors, and other features."""
    model = timm.create_model("resnetaa50").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)  # the branches would be 0
    save_for_hf(model, tmp_path, safe_serialization=True)
    images = torch.randn(1, 3, 32, 64, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected = model.forward_features(images)
    torch.testing.assert_close(load_encoder(str(tmp_path))[0].patches(images), expected, rtol=1e-5, atol=1e-5)


def test_a_timm_folder_of_another_network_than_it_names(tmp_path: Path) -> None:
    saved_by_timm("test_vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, message in (("test_vit3", "timm cannot make"), ("vit_7b_patch16_dinov3", "of another architecture than")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": name}))
        with pytest.raises(ValueError, match=message) as refused:
            load_encoder(str(tmp_path))
        assert "\n" not in str(refused.value)
