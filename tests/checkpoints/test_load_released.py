"""Released checkpoints of every format, written here with random weights in the names of each, give the features of the
trunk that they were written from."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.checkpoints.infer_config import infer_backbone_config
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.losses.sere import SEREConfig
from selfpatch.methods.patch.sere import SERE
from selfpatch.models.backbones.build import build_backbone, build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import ClassAttentionPool
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD, normalise
from tests.helpers.released_forms import (
    FORMS,
    IBOT_HEAD,
    RESNET,
    SWIN,
    VIT,
    State,
    assert_same_features,
    prefixed,
    random_backbone,
    swin_as_released,
    to_branch_keys,
    trunk_state,
)


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_released_checkpoint_gives_the_features_of_its_trunk(tmp_path: Path, form: str) -> None:
    config, write, left_out = FORMS[form]
    backbone = random_backbone(config)
    file = saved(tmp_path / "released.pth", write(trunk_state(backbone)))
    encoder, report = load_encoder(file)
    assert encoder.backbone.config == config
    assert_same_features(encoder, backbone)
    assert set(left_out) <= set(report.left_out)
    assert not report.missing
    assert not report.unexpected
    assert len(report.matched) == len(encoder.state_dict())


WRAPPERS = ("teacher", "state_dict", "classy_state_dict", "base_model", "trunk")


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_key_is_refused_by_name(tmp_path: Path, form: str) -> None:
    """Beside the trunk's keys, and at the outside of whatever holds them."""
    config, write, _ = FORMS[form]
    content = write(trunk_state(random_backbone(config)))
    tensors = content
    while not any(isinstance(value, Tensor) for value in tensors.values()):
        tensors = next(tensors[k] for k in (*WRAPPERS, "model") if k in tensors)
    anchor = "layer1.0.bn1.bias" if isinstance(config, ResNetConfig) else "patch_embed.proj.bias"
    hugging_faces = "embeddings.patch_embeddings.projection.bias"
    inside = [n.removesuffix(end) for n in tensors for end in (anchor, hugging_faces) if n.endswith(end)]
    if len(inside) > 2:
        inside.remove("backbone.")  # mmselfsup keeps the student twice; the second one is not read
    for i, prefix in enumerate([*inside, "stranger."]):
        name = f"{prefix}sonar.weight"
        file = saved(tmp_path / f"{i}.pth", _put(content, tensors, name))
        refused = 0
        for side in ("teacher", "student"):
            try:
                load_encoder(file, LoadConfig(side=side))
            except ValueError as error:
                refused += "sonar.weight" in str(error)
        assert refused, f"{name} was passed over"


def _put(content: Any, tensors: State, name: str) -> Any:
    """The same content, but for one tensor more beside the others."""
    if content is tensors:
        return {**tensors, name: torch.ones(3)}
    return {k: _put(v, tensors, name) if isinstance(v, dict) else v for k, v in content.items()}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("module.base_encoder.", "module.momentum_encoder."),
        ("module.encoder_q.", "module.encoder_k."),
        ("encoder_q.0.", "encoder_k.0."),
        ("encoder.", "encoder_k."),
        ("student.backbone.", "teacher.backbone."),
        ("model.", "teacher."),
    ],
)
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_side_that_is_asked_for_is_read(
    tmp_path: Path, student: str, teacher: str, config: AnyBackboneConfig
) -> None:
    own, average = random_backbone(config, 1), random_backbone(config, 2)
    both = {**prefixed(student, trunk_state(own)), **prefixed(teacher, trunk_state(average))}
    file = saved(tmp_path / "both.pth", both)
    assert_same_features(load_encoder(file, LoadConfig(side="student"))[0], own)
    assert_same_features(load_encoder(file, LoadConfig(side="teacher"))[0], average)
    one = saved(tmp_path / "one.pth", prefixed(student, trunk_state(own)))
    assert_same_features(load_encoder(one, LoadConfig(side="teacher"))[0], own)  # there is no other


def test_two_networks_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    state = trunk_state(random_backbone(VIT))
    file = saved(tmp_path / "two.pth", {**prefixed("left.", state), **prefixed("right.", state)})
    with pytest.raises(ValueError, match=r"two.pth holds 2 networks, 'left.' and 'right.'; save the names and tensors"):
        load_encoder(file)


def test_safetensors_in_any_names_load_as_well(tmp_path: Path) -> None:
    backbone = random_backbone(SWIN)
    save_file(prefixed("encoder.", swin_as_released(trunk_state(backbone))), tmp_path / "swin.safetensors")
    assert_same_features(load_encoder(str(tmp_path / "swin.safetensors"))[0], backbone)


@pytest.mark.parametrize(
    "config",
    [
        replace(VIT, num_registers=2, layer_scale=True, position_embedding="size"),
        SWIN.for_pool(),
        RESNET,
        replace(VIT, num_heads=4),
    ],
    ids=["registers", "swin", "resnet", "heads"],
)
def test_an_export_loads_again(tmp_path: Path, config: AnyBackboneConfig) -> None:
    backbone = random_backbone(config)
    pool = ClassAttentionPool(config.dim, config.num_heads) if isinstance(config, SwinConfig) else None
    if backbone.maskable:
        backbone.add_mask_token()  # an exported teacher may have one
    encoder = BranchEncoder(backbone, pool).eval()
    state, metadata = export_state(encoder)
    save_file(state, tmp_path / "e.safetensors", metadata)
    again, report = load_encoder(str(tmp_path / "e.safetensors"))
    images = torch.randn(2, 3, 2 * config.patch_size, config.patch_size)
    assert again.backbone.config == config
    assert torch.equal(again.patches(images), encoder.patches(images))
    assert torch.equal(again.image(images), encoder.image(images))
    assert report.left_out == (("backbone.mask_token",) if backbone.maskable else ())


def test_timm_names_of_every_family_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network: the weights are what timm would have fetched."""
    backbone = build_timm("resnet26").eval()
    monkeypatch.setattr("selfpatch.checkpoints.read.build_timm", lambda name, pretrained: backbone)
    encoder, report = load_encoder("timm:resnet26")
    assert_same_features(encoder, backbone)
    assert report.source == "timm:resnet26"
    assert isinstance(encoder.backbone.config, ResNetConfig)


def test_a_whole_timm_classifier_loads_from_its_file(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5).eval()
    encoder, report = load_encoder(saved(tmp_path / "timm.pth", model.state_dict()))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_features(images)
    torch.testing.assert_close(encoder.image(images), expected[:, 0], rtol=0, atol=1e-5)
    assert report.left_out == ("head.weight", "head.bias")


def test_hugging_faces_own_models_load(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 12, "patch_size": 4}
    models = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**common, intermediate_size=256, layer_norm_eps=1e-6)),
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**common)),
        "registers": transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**common)),
    }
    images = torch.randn(2, 3, 12, 12)
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            expected = model.eval()(images).last_hidden_state
        model.save_pretrained(tmp_path / name)
        encoder, _ = load_encoder(str(tmp_path / name / "model.safetensors"))
        torch.testing.assert_close(encoder.image(images), expected[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(encoder.patches(images).flatten(2).mT, expected[:, -9:], rtol=0, atol=1e-5)


def test_moco_v3_small_has_its_twelve_heads(tmp_path: Path) -> None:
    """Its attention is not that of other ViT-S, and no tensor shows it."""
    backbone = random_backbone(ViTConfig(embed_dim=384, depth=1, num_heads=12, patch_size=4, grid=2))
    state = trunk_state(backbone)
    moco = saved(tmp_path / "moco.pth", {"state_dict": prefixed("module.base_encoder.", state)})
    assert read_weights(moco).config == backbone.config
    assert read_weights(moco, LoadConfig(num_heads=6)).config == replace(backbone.config, num_heads=6)
    assert read_weights(saved(tmp_path / "dino.pth", state)).config == replace(backbone.config, num_heads=6)


@pytest.mark.parametrize("width", [64, 1024, 1152, 1280, 1408, 1536, 1664])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_wide_vits_have_sixteen_heads_unless_they_are_gated(width: int, mlp: Any) -> None:
    """16 in ViT-H, ViT-g and ViT-G of MAE, I-JEPA and timm, and 24 in DINOv2's ViT-g."""
    heads = width // 64 if mlp == "swiglu" else min(16, width // 64)
    config = ViTConfig(embed_dim=width, depth=1, num_heads=heads, patch_size=4, grid=2, mlp=mlp)
    with torch.device("meta"):
        state = build_backbone(config).state_dict()
    assert infer_backbone_config({f"backbone.{k}": v for k, v in state.items()}, "w") == config


# SERE and iBOT: what becomes of their heads


def golden_sere(golden_dir: Path) -> dict[str, Any]:
    return torch.load(golden_dir / "mini" / "sere" / "initial.pth", weights_only=True)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_relation_heads_of_sere_are_those_of_the_objective(golden_dir: Path, side: str) -> None:
    checkpoint = golden_sere(golden_dir)
    state = to_branch_keys(checkpoint[side])
    heads = nn.ModuleDict(SERE(24, 3, 3, SEREConfig()).heads())
    heads.load_state_dict({k.removeprefix("heads."): v for k, v in state.items() if "_relation" in k})
    prefix = "module." if side == "student" else ""
    for ours, theirs in [
        ("spatial_relation", "pixel_sere"),
        ("channel_relation", "channel_sere"),
        ("spatial_relation_local", "pixel_sere_local"),
        ("channel_relation_local", "channel_sere_local"),
    ]:
        weight = checkpoint[side][f"{prefix}backbone.{theirs}.predictor.0.weight"]
        assert torch.equal(heads[ours].predictor[0].weight, weight[:, :, 0, 0])
    assert ("backbone.mask_token" in state) == (side == "student")
    assert not any("running_" in name or "masked_patch" in name for name in state)


def test_a_released_sere_checkpoint_gives_the_recorded_logits(golden_dir: Path) -> None:
    file = str(golden_dir / "mini" / "sere" / "initial.pth")
    encoder, report = load_encoder(file, LoadConfig(num_heads=3))
    recorded = load_file(golden_dir / "mini" / "sere" / "tensors.safetensors")
    crops = torch.cat([recorded["step0.crop0"], recorded["step0.crop1"]])
    x = encoder.image(normalise(crops, IMAGENET_MEAN, IMAGENET_STD))
    head = golden_sere(golden_dir)["teacher"]
    for i in (0, 2, 4):
        x = torch.nn.functional.linear(x, head[f"head.mlp.{i}.weight"], head[f"head.mlp.{i}.bias"])
        x = torch.nn.functional.gelu(x) if i < 4 else torch.nn.functional.normalize(x, dim=-1)
    prototypes = torch.nn.functional.normalize(head["head.last_layer.weight_v"], dim=-1)
    logits = x @ prototypes.T * head["head.last_layer.weight_g"].T
    torch.testing.assert_close(logits, recorded["step0.teacher_cls_logits"], rtol=1e-4, atol=1e-5)
    assert "backbone.pixel_sere.projection.0.running_mean" in report.left_out
    assert "head.last_layer2.weight_v" in report.left_out


def test_patch_prototypes_of_their_own_are_kept_as_such() -> None:
    head = {"backbone.patch_embed.proj.weight": torch.ones(4, 3, 2, 2), **prefixed("", IBOT_HEAD)}
    shared = to_branch_keys(head)
    separate = to_branch_keys({**head, "head.last_layer2.weight_v": torch.zeros(5, 3)})
    assert "heads.masked_patch.last_layer.weight_v" not in shared
    assert separate["heads.masked_patch.last_layer.weight_v"].shape == (5, 3)
    assert "heads.image.last_layer.weight_v" in shared


# What is refused


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            RESNET,
            r"\.(conv3|bn3)\.",
            "a ResNet of basic blocks, such as ResNet-18 or -34; one of bottlenecks is needed",
        ),
        (SWIN, r"relative_position_bias_table", "holds another kind of Swin transformer; one of version 1 is needed"),
        (VIT, r"pos_embed", "holds no plain ViT, Swin, ResNet or ConvNeXt; its keys are"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, config: AnyBackboneConfig, change: str, message: str) -> None:
    state = {n: t for n, t in trunk_state(random_backbone(config)).items() if not re.search(change, n)}
    with pytest.raises(ValueError, match=message):
        load_encoder(saved(tmp_path / "other.pth", state))


def test_a_vit_whose_rotary_positions_no_tensor_shows_is_refused() -> None:
    with torch.device("meta"):
        state = timm.create_model("eva02_tiny_patch14_224", depth=1).state_dict()
    with pytest.raises(ValueError, match=r"e\.pth holds an EVA-02, whose rotary positions no tensor shows; give it"):
        to_branch_keys(state, source="e.pth")


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnext50_32x4d"])
def test_wide_and_grouped_resnets_are_refused(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    with pytest.raises(ValueError, match=r"w\.pth holds a wide ResNet or a ResNeXt; a plain one is needed"):
        infer_backbone_config(to_branch_keys(state), "w.pth")


@pytest.mark.parametrize(
    "config",
    [
        replace(VIT, class_token=False, final_norm=False, in_channels=4),
        replace(VIT, num_registers=3, position_embedding="size"),
        replace(VIT, mlp="swiglu", layer_scale=True, depth=3, grid=5, patch_size=2),
        replace(SWIN, window=3, in_channels=1),
        replace(SWIN, depths=(2,), final_norm=False),
        replace(RESNET, depths=(2, 3), width=8),
    ],
)
def test_the_architecture_is_told_from_the_tensors(config: AnyBackboneConfig) -> None:
    assert (
        infer_backbone_config({f"backbone.{k}": v for k, v in build_backbone(config).state_dict().items()}, "w")
        == config
    )


@pytest.mark.parametrize(
    "name", ["yacs.config.CfgNode", "pytorch_lightning.utilities.parsing.AttributeDict"], ids=["moby", "lightning"]
)
def test_a_configuration_beside_the_tensors_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Such files hold a mapping of a class of its own. It is read as a plain one, whether or not that class exists."""
    backbone = random_backbone(SWIN)
    path, _, class_name = name.rpartition(".")
    kind = type(class_name, (dict,), {"__module__": path})
    config = kind({"MODEL": kind({"TYPE": "moby"}), "BASE": [""]})
    config.frozen = True
    module = types.ModuleType(path)
    setattr(module, class_name, kind)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, path.partition(".")[0], types.ModuleType(path.partition(".")[0]))
        patch.setitem(sys.modules, path, module)
        model = prefixed("encoder.", swin_as_released(trunk_state(backbone)))
        file = saved(tmp_path / "released.pth", {"model": model, "config": config, "epoch": 299})
    encoder, _ = load_encoder(file)
    assert_same_features(encoder, backbone)
