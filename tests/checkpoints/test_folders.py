"""Folders as weights: exports, folders of Hugging Face and timm with their JSON files, shards, and what is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfpatch.api.encoder import open_encoder
from selfpatch.checkpoints.export import huggingface, safetensors, timm
from selfpatch.checkpoints.folders import weights_file
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.core.dry_run import dry_run
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.released_forms import (
    RESNET,
    SWIN,
    VIT,
    assert_same_features,
    hugging_face,
    random_backbone,
    trunk_state,
)

ODD_HEADS = replace(VIT, embed_dim=96, num_heads=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
"""Heads of 32 channels, which the tensors do not tell, and another normalisation."""
CONFIGS = {
    "vit": ODD_HEADS,
    "vit of other positions": replace(ODD_HEADS, position_embedding="size"),
    "registers and layer scale": replace(ODD_HEADS, num_registers=2, layer_scale=True, position_embedding="size"),
    "swin": SWIN,
    "resnet": RESNET,
}


@pytest.mark.parametrize("module", [timm, huggingface, safetensors], ids=["timm", "hf", "safetensors"])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_folder_is_the_network(tmp_path: Path, name: str, module: object) -> None:
    backbone = random_backbone(CONFIGS[name])
    module.write(BranchEncoder(backbone, None), tmp_path, None)  # type: ignore[attr-defined]
    encoder, report = load_encoder(str(tmp_path))
    assert_same_features(encoder, backbone)
    assert (encoder.mean, encoder.std) == (backbone.mean, backbone.std)
    assert "left out" not in str(report)
    with dry_run():
        assert read_weights(str(tmp_path)).config == read_weights(str(tmp_path)).config


def write_shards(state: dict[str, torch.Tensor], folder: Path, *, torch_files: bool = False) -> Path:
    """Write two shards and their index, as transformers does."""
    keys, weight_map = sorted(state), {}
    ending = "bin" if torch_files else "safetensors"
    stem = "pytorch_model" if torch_files else "model"
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"{stem}-0000{number}-of-00002.{ending}"
        tensors = {key: state[key].contiguous() for key in part}
        torch.save(tensors, folder / name) if torch_files else save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def write_settings(folder: Path, config: AnyBackboneConfig) -> None:
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vit", "num_attention_heads": config.num_heads, "hidden_act": "gelu"})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": list(config.mean), "image_std": list(config.std)})
    )


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "shards", "torch shards", "cache"])
def test_a_folder_of_hugging_face_is_the_network(tmp_path: Path, form: str) -> None:
    backbone, folder = random_backbone(ODD_HEADS), tmp_path
    if form == "cache":
        folder = tmp_path / "snapshots" / "0123"
        folder.mkdir(parents=True)
    state = {f"vit.{key}": tensor.contiguous() for key, tensor in hugging_face(trunk_state(backbone)).items()}
    if form in ("model.safetensors", "cache"):
        save_file(state, folder / "model.safetensors", metadata={"format": "pt", "shape": "[3, 224, 224]"})
    elif form == "pytorch_model.bin":
        torch.save(state, folder / form)
    else:
        index = write_shards(state, folder, torch_files=form == "torch shards")
    write_settings(folder, ODD_HEADS)
    encoder, _ = load_encoder(str(tmp_path))
    assert_same_features(encoder, backbone)
    assert (encoder.mean, encoder.std) == (backbone.mean, backbone.std)
    if form.endswith("shards"):
        by_index = read_weights(str(index))
        assert by_index.config == encoder.backbone.config
        other = bytearray((folder / weights_file(folder)).read_bytes())
        (folder / weights_file(folder)).write_bytes(other + b" ")
        assert read_weights(str(index)).sha256 != by_index.sha256


def test_an_untrained_network_of_a_folder(tmp_path: Path) -> None:
    safetensors.write(BranchEncoder(random_backbone(VIT), None), tmp_path, None)
    encoder, _ = open_encoder(f"untrained:{tmp_path}", "cpu")
    assert isinstance(encoder, BranchEncoder)
    assert encoder.backbone.config == VIT


def test_a_lone_file_in_a_folder_counts(tmp_path: Path) -> None:
    torch.save(trunk_state(random_backbone(VIT)), tmp_path / "checkpoint_ep300.pth")
    (tmp_path / "README.md").write_text("weights")
    assert read_weights(str(tmp_path)).config == VIT
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"is no run, and holds 2 files of weights, checkpoint_ep300.pth and other.pt"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is no run: it has no config.yaml, and no weights either; name the --out of a `selfpatch pretrain`"),
        ({"model.onnx": b"graph"}, "model.onnx is a graph; give the weights that it was exported from"),
        ({".metadata": b"", "__0_0.distcp": b""}, "dcp_to_torch"),
        ({"config.json": b"[1]", "model.safetensors": None}, "config.json does not describe a network in JSON"),
        ({"config.json": b'{"hidden_act": "quick_gelu"}', "model.safetensors": None}, "the activation 'quick_gelu'"),
        ({"config.json": b'{"num_attention_heads": "many"}', "model.safetensors": None}, "'many'; use a whole number"),
        ({"preprocessor_config.json": b'{"image_mean": [0.5], "image_std": [0.5]}', "model.safetensors": None}, "1 ch"),
        ({"preprocessor_config.json": b'{"image_mean": 3, "image_std": [0]}', "model.safetensors": None}, "the mean"),
        (
            {"m.safetensors.index.json": b'{"weight_map": {"a": "../b.bin"}}'},
            "names '../b.bin', which leads out of its folder",
        ),
        ({"m.safetensors.index.json": b'{"weight_map": {"a": 3}}'}, "names 3, which is no text"),
        ({"m.safetensors.index.json": b'{"weight_map": {"a": "b.bin"}}'}, "index of 1 shard, and b.bin is missing"),
        ({"m.safetensors.index.json": b'{"weight_map": [1]}'}, "an index of shards that names none"),
        ({"m.json": b'{"weight_map": {"a": "m.json"}}'}, "names another index as a shard"),
        ({"m.json": b'{"weight_map": {"none": "w.safetensors"}}', "w.safetensors": None}, "has no tensor 'none'"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, files: dict[str, bytes | None], message: str) -> None:
    for name, content in files.items():
        if content is None:
            save_file(trunk_state(random_backbone(VIT)), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    index = next((name for name in files if name.startswith("m.")), None)
    with pytest.raises(ValueError, match=message) as refused:
        read_weights(str(tmp_path / index if index else tmp_path))
    assert "\n" not in str(refused.value)


def test_a_vit_of_another_size_than_its_description(tmp_path: Path) -> None:
    assert isinstance(VIT, ViTConfig)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 5}))
    save_file(trunk_state(random_backbone(VIT)), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="width 128 cannot be split into 5 heads"):
        read_weights(str(tmp_path))
