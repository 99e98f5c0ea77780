"""Exports: what timm, transformers and onnxruntime load gives the features of the network that was trained."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

from selfpatch.checkpoints.export.export import FORMATS, export
from selfpatch.checkpoints.export.timm import read_features as read_timm
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.schema import Size, height_and_width
from selfpatch.models.backbones.build import build_backbone, build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.debiased import debiased
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import ClassAttentionPool
from tests.helpers import tiny_eva

VIT = ViTConfig(embed_dim=16, depth=2, num_heads=4, patch_size=4, grid=5)
SWIN = SwinConfig(embed_dim=8, depths=(2, 2, 2), first_heads=2, window=4)
RESNET = ResNetConfig(depths=(1, 2, 1, 1), width=8)
CONVNEXT = ConvNeXtConfig(embed_dim=4, depths=(1, 2, 1, 1))
SHAPES: dict[str, AnyBackboneConfig] = {
    "vit": VIT,
    "vit without CLS token": replace(VIT, class_token=False),
    "vit with scales": replace(VIT, layer_scale=True),
    "vit with registers": replace(VIT, num_registers=3),
    "vit with rotary positions": replace(VIT, rope=True, num_registers=3, layer_scale=True),
    "gated vit with rotary positions": replace(VIT, rope=True, num_registers=2, mlp="swiglu", mlp_width=24),
    "vit with a width that a ratio rounds down": replace(VIT, embed_dim=88, mlp_width=120),
    "vit of five channels": replace(VIT, in_channels=5, mean=(0.4,) * 5, std=(0.2,) * 5),
    "swin": SWIN,
    "resnet": RESNET,
    "convnext": CONVNEXT,
    "convnext v2": replace(CONVNEXT, layer_scale=False, response_norm=True),
}
POOLED = VIT.for_pool()
"""What a run with SelfPatch trains: neither CLS token nor final norm, and a pool."""


def encoder_of(config: AnyBackboneConfig, *, pool: bool = False) -> BranchEncoder:
    """Its weights far from any initial value, so that each of them matters."""
    torch.manual_seed(0)
    backbone = build_backbone(config)
    encoder = BranchEncoder(backbone, ClassAttentionPool(config.dim, config.num_heads) if pool else None).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        for name, buffer in encoder.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return encoder


def side_of(config: AnyBackboneConfig) -> int:
    """Of the images whose patches are the stored grid, or which the windows were laid out for."""
    return 20 if isinstance(config, ViTConfig) else 64


def images_for(config: AnyBackboneConfig, height: int | None = None, width: int | None = None) -> torch.Tensor:
    height, width = height or side_of(config), width or side_of(config)
    return torch.randn(2, config.in_channels, height, width, generator=torch.manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", SHAPES)
def test_timm_gives_the_same_features(name: str, tmp_path: Path) -> None:
    encoder, images = encoder_of(SHAPES[name]), images_for(SHAPES[name])
    export(encoder, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0).eval()
    found = read_timm(tmp_path / "out", images)
    close(found.patches, encoder.patches(images))
    with torch.no_grad():
        close(model(images), encoder.image(images))
    assert tuple(model.pretrained_cfg["mean"]) == SHAPES[name].mean


@pytest.mark.parametrize(
    "config", [replace(VIT, position_embedding="size"), replace(VIT, rope=True), SWIN, RESNET, CONVNEXT]
)
def test_timm_agrees_at_other_sizes_where_positions_are_its_own(config: AnyBackboneConfig, tmp_path: Path) -> None:
    encoder, images = encoder_of(config), images_for(config, 128, 96)
    export(encoder, "timm", tmp_path / "out")
    close(read_timm(tmp_path / "out", images).patches, encoder.patches(images))


def test_timm_gives_the_patches_of_a_run_with_a_pool_and_the_folder_says_so(tmp_path: Path) -> None:
    encoder, images = encoder_of(POOLED, pool=True), images_for(POOLED)
    *_, readme = export(encoder, "timm", tmp_path / "out")
    close(read_timm(tmp_path / "out", images).patches, encoder.patches(images))
    assert "a pool's, which is not in this folder" in readme.read_text()
    assert "At sizes other than 20 x 20 timm interpolates" in readme.read_text()


@pytest.mark.parametrize("config", [VIT, SWIN, RESNET, CONVNEXT])
def test_timm_puts_a_classifier_on_what_was_exported(config: AnyBackboneConfig, tmp_path: Path) -> None:
    encoder, images = encoder_of(config), images_for(config)
    export(encoder, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=10).eval()
    with torch.no_grad():
        assert model(images).shape == (2, 10)
        close(model.forward_head(model.forward_features(images), pre_logits=True), encoder.image(images))


@pytest.mark.parametrize("pool", [False, True])
def test_our_own_file_loads_back_with_its_pool(pool: bool, tmp_path: Path) -> None:
    config = POOLED if pool else VIT
    encoder, images = encoder_of(config, pool=pool), images_for(config, 24, 16)
    file, _ = export(encoder, "safetensors", tmp_path / "out")
    loaded, _ = load_encoder(str(file))
    assert torch.equal(loaded.image(images), encoder.image(images))
    assert torch.equal(loaded.patches(images), encoder.patches(images))
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["shape"])["num_heads"] == 4


def test_transformers_empty_registers_load_back_as_none(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    config = replace(VIT, rope=True)
    encoder, images = encoder_of(config), images_for(config)
    export(encoder, "hf", tmp_path / "out")
    loaded, _ = load_encoder(str(tmp_path / "out"))
    assert loaded.backbone.config == replace(config, layer_scale=True)  # of ones
    close(loaded.patches(images), encoder.patches(images))


BELOW_A_POOL: dict[str, AnyBackboneConfig] = {
    "vit below a pool": POOLED,
    "scaled vit below a pool": replace(POOLED, layer_scale=True),
    "swin below a pool": SWIN.for_pool(),
    "convnext below a pool": CONVNEXT.for_pool(),
    "convnext v2 below a pool": SHAPES["convnext v2"].for_pool(),
}
MODELS = {
    "vit": "ViTModel",
    "vit without CLS token": "IJepaModel",
    "vit with scales": "Dinov2Model",
    "vit with registers": "Dinov2WithRegistersModel",
    "vit with rotary positions": "DINOv3ViTModel",
    "gated vit with rotary positions": "DINOv3ViTModel",
    "vit of five channels": "ViTModel",
    "swin": "SwinModel",
    "resnet": "ResNetModel",
    "convnext": "DINOv3ConvNextModel",
    "vit below a pool": "VitDetModel",
    "scaled vit below a pool": "VitDetModel",
    "swin below a pool": "DonutSwinModel",
    "convnext below a pool": "ConvNextModel",
    "convnext v2 below a pool": "ConvNextV2Model",
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_features(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config, has_pool = {**SHAPES, **BELOW_A_POOL}[name], name in BELOW_A_POOL
    encoder, images = encoder_of(config, pool=has_pool), images_for(config)
    *_, readme = export(encoder, "hf", tmp_path / "out")
    assert ("a pool's, which is not in this folder" in readme.read_text()) == has_pool
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == MODELS[name]
    with torch.no_grad():
        last = model(images).last_hidden_state
    patches = encoder.patches(images)
    if last.ndim == 3:  # [B, prefix + N, D]
        patches = patches.flatten(2).transpose(1, 2)
        if last.shape[1] > patches.shape[1]:
            close(last[:, 0], encoder.image(images))
        last = last[:, -patches.shape[1] :]
    close(last, patches)
    if config.in_channels == 3:
        pixels = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert tuple(pixels["image_mean"]) == config.mean


@pytest.mark.parametrize(
    "config",
    [SWIN, RESNET, CONVNEXT, replace(SHAPES["gated vit with rotary positions"], num_heads=1), *BELOW_A_POOL.values()],
)
def test_a_folder_for_transformers_loads_back(config: AnyBackboneConfig, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    encoder, images = encoder_of(config), images_for(config)
    export(encoder, "hf", tmp_path / "out")
    loaded, _ = load_encoder(str(tmp_path / "out" / "model.safetensors"))
    if getattr(config, "layer_scale", False) and loaded.backbone.config != config:  # folded into other weights
        close(loaded.patches(images), encoder.patches(images))
    else:
        assert torch.equal(loaded.patches(images), encoder.patches(images))


def test_transformers_opens_what_was_exported_for_timm(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    encoder, images = encoder_of(POOLED, pool=True), images_for(POOLED)
    export(encoder, "timm", tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(model(images).last_hidden_state.transpose(1, 2), encoder.patches(images).flatten(2))


@pytest.mark.parametrize(
    ("config", "to", "sentence"),
    [
        (replace(VIT, final_norm=False), "hf", "this ViT has no final norm, .* use --to timm, .* or --to onnx"),
        (replace(POOLED, rope=True), "hf", "this ViT has no final norm, .* without CLS token, registers, rotary"),
        (SWIN.for_pool(), "timm", "this Swin has no final norm.*use --to onnx or safetensors"),
        (CONVNEXT.for_pool(), "timm", "this ConvNeXt has no final norm.*use --to onnx or safetensors"),
        (replace(CONVNEXT, depths=(1, 1, 1)), "timm", "timm's ConvNeXt has 4 stages, and this one 3; use --to onnx"),
        (SHAPES["convnext v2"], "hf", "no ConvNeXt with patch features that has all of this one; use --to timm"),
        (replace(CONVNEXT.for_pool(), norm_eps=1e-5), "hf", "no ConvNeXt with patch features that has all of this"),
        (replace(VIT, class_token=False, layer_scale=True), "hf", "no ViT without CLS token.*use --to timm"),
    ],
)
def test_networks_unknown_to_the_library_are_refused(
    config: AnyBackboneConfig, to: str, sentence: str, tmp_path: Path
) -> None:
    if to == "hf":
        pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(ValueError, match=sentence):
        export(encoder_of(config), to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_rounded_periods_of_rotary_positions_are_refused(to: str, tmp_path: Path) -> None:
    """DINOv3's released files hold them in bfloat16, and the other libraries compute theirs."""
    if to == "hf":
        pytest.importorskip("transformers", reason="transformers is not installed")
    encoder = encoder_of(SHAPES["vit with rotary positions"])
    periods = encoder.backbone.trunk.rope.periods
    periods.mul_(1.003)
    with pytest.raises(ValueError, match=r"periods .* are rounded.* use --to onnx or safetensors"):
        export(encoder, to, tmp_path / "out")


def require_onnx() -> None:
    for library in FORMATS["onnx"].LIBRARIES:
        pytest.importorskip(library, reason=f"{library} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "pool", "size", "other_size"),
    [
        (POOLED, True, None, (16, 28)),
        (VIT, False, 24, None),
        (VIT, False, (16, 28), None),
        (replace(VIT, rope=True, num_registers=2), False, None, (16, 28)),
        (SWIN, False, None, None),
        (RESNET, False, None, (96, 64)),
    ],
)
def test_onnxruntime_gives_the_same_features_of_any_batch(
    config: AnyBackboneConfig, pool: bool, size: Size | None, other_size: tuple[int, int] | None, tmp_path: Path
) -> None:
    require_onnx()
    import onnxruntime

    encoder = encoder_of(config, pool=pool)
    export(encoder, "onnx", tmp_path / "out", size=size)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    sides = height_and_width(size or side_of(config))
    for height, width in {sides, other_size or sides}:
        for batch in (1, 3):
            images = images_for(config, height, width)[:1].repeat(batch, 1, 1, 1)
            image, patches = (torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()}))
            close(image, encoder.image(images))
            close(patches, encoder.patches(images))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["mean"]) == list(config.mean)
    assert json.loads(metadata["std"]) == list(config.std)
    assert metadata["patch_size"] == str(config.patch_size)
    assert metadata.get("size") == (None if other_size else json.dumps(size or side_of(config)))


@pytest.mark.slow
@pytest.mark.parametrize(("config", "pool"), [(POOLED, True), (RESNET, False)])
def test_torch_runs_the_exported_program_at_any_size(config: AnyBackboneConfig, pool: bool, tmp_path: Path) -> None:
    encoder = encoder_of(config, pool=pool)
    file, readme = export(encoder, "torch", tmp_path / "out")
    metadata = {"mean": "", "std": "", "patch_size": ""}
    network = torch.export.load(file, extra_files=metadata).module()
    p = config.patch_size
    for height, width in ((2 * p, 2 * p), (3 * p, 7 * p)):
        for batch in (1, 3):
            images = images_for(config, height, width)[:1].repeat(batch, 1, 1, 1)
            image, patches = network(images)
            close(image, encoder.image(images))
            close(patches, encoder.patches(images))
    assert json.loads(metadata["mean"]) == list(config.mean)
    assert json.loads(metadata["patch_size"]) == p
    assert f"multiples of {p}, from {2 * p} on" in readme.read_text()


@pytest.mark.slow
def test_onnxruntime_gives_features_without_positions(tmp_path: Path) -> None:
    require_onnx()
    import onnxruntime

    encoder = encoder_of(VIT)
    *_, readme = export(encoder, "onnx", tmp_path / "out", size=24, debias=3)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    images = images_for(VIT, 24, 24)
    image, patches = (torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()}))
    close(image, encoder.image(images))
    close(patches, debiased(encoder, 3).patches(images))
    assert session.get_modelmeta().custom_metadata_map["debias"] == "3"
    assert "Patch features lack 3 directions of positions, and have length 1." in readme.read_text()


def test_nothing_appears_where_the_other_library_gives_other_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slightly_off(folder: Path, images: torch.Tensor) -> Any:
        found = read_timm(folder, images)
        return found._replace(patches=found.patches + 1e-3 * found.patches.abs().max())

    monkeypatch.setattr(FORMATS["timm"], "read_features", slightly_off)
    with pytest.raises(ValueError, match=r"timm gives patch features that differ by 1\.0e-03 of the largest"):
        export(encoder_of(VIT), "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no empty folder; name another one with --out"):
        export(encoder_of(VIT), "timm", tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    paths = export(encoder_of(VIT), "timm", tmp_path)
    assert [path.name for path in paths] == ["config.json", "model.safetensors", "README.txt"]
    assert f'local-dir:{tmp_path}"' in paths[-1].read_text()


def test_the_encoder_is_as_it_was(tmp_path: Path) -> None:
    encoder = encoder_of(VIT).train().double()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    export(encoder, "timm", tmp_path / "out")
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_request_that_cannot_be_met_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no export to 'tflite'; use one of timm, safetensors, hf, onnx, torch"):
        export(encoder_of(VIT), "tflite", tmp_path / "out")
    with pytest.raises(ValueError, match="size is 224, but an export to timm takes images of many sizes"):
        export(encoder_of(VIT), "timm", tmp_path / "out", size=224)
    with pytest.raises(ValueError, match=r"debias is 20, but an export to timm holds the network alone.* --to onnx"):
        export(encoder_of(VIT), "timm", tmp_path / "out", debias=20)
    with pytest.raises(ValueError, match="debias is 20, but positions differ between sizes of images; give their"):
        export(encoder_of(VIT), "onnx", tmp_path / "out", debias=20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime; .*pip install 'selfpatch\[export\]'"):
        export(encoder_of(VIT), "onnx", tmp_path / "out")


def test_a_size_that_the_patch_does_not_divide_is_refused(tmp_path: Path) -> None:
    require_onnx()
    with pytest.raises(ValueError, match="patch size 4 does not divide the image side 22"):
        export(encoder_of(VIT), "onnx", tmp_path / "out", size=22)


@pytest.mark.parametrize("name", [*tiny_eva.__all__, "test_vit2"])
@pytest.mark.parametrize("to", ["timm", "safetensors"])
def test_timms_own_vits_keep_their_features(name: str, to: str, tmp_path: Path) -> None:
    """Networks that average their tokens have their final norm elsewhere in timm."""
    encoder = encoder_of(build_timm(name).config)
    images = images_for(encoder.backbone.config, 32, 64)
    export(encoder, to, tmp_path / "out")
    loaded, _ = load_encoder(str(tmp_path / "out"))
    torch.testing.assert_close(loaded.patches(images), encoder.patches(images), rtol=1e-5, atol=1e-5)
    if to == "timm":
        close(read_timm(tmp_path / "out", images).patches, encoder.patches(images))


def test_transformers_has_no_eva(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    encoder = encoder_of(build_timm(tiny_eva.EVA02).config)
    with pytest.raises(ValueError, match=r"transformers has no model that is timm's eva02_of_tests; use --to timm"):
        export(encoder, "hf", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_eva.__all__)
def test_onnx_runs_timms_own_vits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export(encoder_of(build_timm(name).config), "onnx", tmp_path / "out")
