"""A file that describes another network than it holds is refused before that network takes memory or time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.checkpoints.infer_config import infer_backbone_config
from selfpatch.checkpoints.load import load_encoder
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.released_forms import RESNET, SWIN, VIT, prefixed, random_backbone, trunk_state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 10**7}, "embed_dim is 10000000; use 100000 or less"),
        (
            {"embed_dim": 10**5},
            r"is of another architecture than is described: .* is \[.*\] there and \[.*100000.*\] here",
        ),
        ({"depth": 10**5}, "describes 100000 layers, but it holds"),
        ({"depth": 24}, r"holds \d+ of \d+ tensors of its network"),
        ({"patch_size": 0}, "patch_size is 0; use 1 or more"),
        ({"patch_size": "four"}, "patch_size is 'four'; use a whole number"),
        ({"patch_size": True}, "patch_size is True; use a number"),
        ({"patch_size": [4]}, r"patch_size is \(4,\)|patch_size is \[4\]"),
        ({"grid": 10**5}, r"pos_embed is \[1, 10, 128\] there and \[1, 10000000001, 128\] here"),
        ({"num_heads": 0}, "num_heads is 0; use 1 or more"),
        ({"num_heads": 7}, "cannot be split into 7 heads"),
        ({"num_registers": -1}, "num_registers is -1; use 0 or more"),
        ({"mean": [0.5]}, "mean has 1 value and std 3; give one of each"),
        ({"std": [0, 0, 0]}, "std.* is 0; use a number above 0"),
        ({"mean": ["a", "b", "c"]}, "mean.* is 'a'; use a number"),
        ({"mlp": "relu"}, "mlp is 'relu'; use one of: gelu, swiglu"),
        ({"family": ["vit"]}, "family is"),
        ({"wings": 2}, "wings is not a setting"),
        ({"timm_model": "vit_giant_patch14_dinov2"}, "is of another architecture than is described"),
        ({"timm_model": "nothing"}, "unknown model 'nothing'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state, metadata = export_state(BranchEncoder(random_backbone(VIT), None))
    shape = json.loads(metadata["shape"]) | change
    save_file(state, tmp_path / "w.safetensors", {"shape": json.dumps(shape)})
    torch.save({"pretrainer": prefixed("teacher.backbone.trunk.", state), "shape": shape}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(ValueError, match=message) as refused:
            load_encoder(str(tmp_path / name))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", ["[1, 2]", "text", "3", '{"height": 224}', "[" * 5000, "null"])
def test_another_meaning_of_shape_does_no_harm(tmp_path: Path, shape: str) -> None:
    save_file(trunk_state(random_backbone(VIT)), tmp_path / "w.safetensors", {"shape": shape})
    assert load_encoder(str(tmp_path / "w.safetensors"))[0].backbone.config == VIT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.99999.norm1.weight": torch.zeros(128)}, "describes 100000 layers"),
        ({f"blocks.{'9' * 5000}.norm1.weight": torch.zeros(128)}, "unexpected"),
        ({"patch_embed.proj.weight": torch.zeros(128, 3, 0, 0)}, r"patch_embed.proj.weight has the shape"),
        (
            {"patch_embed.proj.weight": torch.zeros(128)},
            "ResNet or ConvNeXt: patch_embed.proj.weight",
        ),
        ({"pos_embed": torch.zeros(())}, "holds no plain ViT, Swin, ResNet or ConvNeXt: pos_embed"),
        (
            {"blocks.0.mlp.fc1.weight": torch.zeros(3)},
            "ResNet or ConvNeXt: blocks.0.mlp.fc1.weight",
        ),
        ({"norm.weight": torch.zeros(3)}, r"norm.weight is \[3\] there and \[128\] here"),
        ({"rope.periods": torch.zeros(0), "pos_embed": None}, "rope.periods has the shape"),
        ({"layer1.0.conv1.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)}, "holds"),
    ],
)
def test_tensors_of_odd_shapes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = trunk_state(random_backbone(VIT)) | change
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as refused:
        load_encoder(str(tmp_path / "w.pth"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["layer1.0.conv2.weight", "conv1.weight"])
def test_a_resnet_without_its_first_layers_is_refused(name: str) -> None:
    state = {f"backbone.trunk.{key}": x for key, x in trunk_state(random_backbone(RESNET)).items() if key != name}
    with pytest.raises(ValueError, match=f"w holds a ResNet without {name}"):
        infer_backbone_config(state, "w")


def test_a_window_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = trunk_state(random_backbone(SWIN))
    shape = SWIN.to_dict() | {"window": 500}
    torch.save({"pretrainer": prefixed("teacher.backbone.trunk.", state), "shape": shape}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"relative_position_bias_table is \[9, 2\] there and \[998001, 2\] here"):
        load_encoder(str(tmp_path / "w.pt"))
