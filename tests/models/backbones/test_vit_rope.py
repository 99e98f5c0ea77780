"""ViTs with rotary positions (DINOv3): what is special about their blocks, and that the rest is as with any ViT."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from selfpatch.config.sections import OptimizerConfig
from selfpatch.models.backbones import vit
from selfpatch.models.backbones.build import MODELS, build_backbone, build_timm
from selfpatch.models.backbones.config import ViTConfig, backbone_config_from_dict
from selfpatch.models.backbones.dinov3_keys import to_timm
from selfpatch.models.backbones.vit import ViT
from selfpatch.training.trainer import training_step
from tests.helpers.tiny import hyperparameters, plain_sgd, tiny_student_teacher, tiny_views

ROPE = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=4, grid=4, rope=True, num_registers=2, layer_scale=True)


def rotary_vit(config: ViTConfig = ROPE) -> ViT:
    torch.manual_seed(0)
    backbone = build_backbone(config)
    assert isinstance(backbone, ViT)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return backbone


def images(height: int = 12, width: int = 20) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.manual_seed(1))


def test_there_are_no_learned_positions_and_the_norms_are_dinov3s() -> None:
    backbone = rotary_vit()
    assert backbone.trunk.pos_embed is None
    assert {part.eps for part in backbone.modules() if isinstance(part, nn.LayerNorm)} == {1e-5}
    assert {
        part.eps for part in build_backbone(replace(ROPE, rope=False)).modules() if isinstance(part, nn.LayerNorm)
    } == {1e-6}


def test_patches_know_their_index_and_class_and_register_tokens_have_none() -> None:
    backbone, x = rotary_vit().eval(), images()
    embedded = backbone.embed(x)
    shuffled = embedded.flip(1)
    swapped, straight = backbone.encode(shuffled), backbone.encode(embedded)
    assert not torch.allclose(swapped.patches.flip(1), straight.patches, atol=1e-3)
    with torch.no_grad():
        backbone.trunk.rope.periods.fill_(1e9)  # angles of 0: without rotation the blocks see a set
    swapped, straight = backbone.encode(shuffled), backbone.encode(embedded)
    torch.testing.assert_close(swapped.patches.flip(1), straight.patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_the_keys_have_no_bias(training: bool) -> None:
    """Neither do stored values matter, nor does one get a gradient."""
    backbone, x = rotary_vit().train(training), images()
    before = backbone(x).patches
    before.square().sum().backward()
    for block in backbone.trunk.blocks:
        query, key, value = block.attn.qkv.bias.grad.chunk(3)
        assert not key.any()
        assert query.all()
        assert value.all()
        with torch.no_grad():
            block.attn.qkv.bias[16:32] += 5.0
    torch.testing.assert_close(backbone(x).patches, before)


def test_maps_facets_and_layers_are_as_with_any_vit() -> None:
    backbone, x = rotary_vit().eval(), images()
    tokens = backbone(x)
    assert tokens.patches.shape == (2, 3, 5, 16)
    assert torch.equal(backbone.maps(x, [1, 3])[1], tokens.raw_patches)
    assert torch.equal(backbone.last_tokens(x, 2)[-1].cls, tokens.cls)
    inner: list[torch.Tensor] = []
    handle = backbone.trunk.blocks[1].attn.qkv.register_forward_hook(lambda _, __, output: inner.append(output))
    backbone(x)
    handle.remove()
    keys = inner[0][:, 3:, 16:32].unflatten(1, (3, 5))  # before the rotation
    torch.testing.assert_close(backbone.facet(x, "key", 1), keys)
    layers = {name.split(".")[1]: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers == {"cls_token": 0, "reg_token": 0, "patch_embed": 0, "blocks": 3, "norm": 4}
    backbone.freeze_first(2)
    trained = {n.split(".")[2] for n, p in backbone.named_parameters() if p.requires_grad and ".blocks." in n}
    assert trained == {"2"}


def test_a_configuration_survives_json_and_older_ones_have_no_rotations() -> None:
    assert backbone_config_from_dict(ROPE.to_dict()) == ROPE
    older = {name: value for name, value in VIT_DICT.items() if name not in ("rope", "mlp_width")}
    assert backbone_config_from_dict(older) == replace(ROPE, rope=False)


VIT_DICT = replace(ROPE, rope=False).to_dict()


@pytest.mark.parametrize(("mlp", "width", "first"), [("gelu", 24, 24), ("swiglu", 24, 48), ("swiglu", None, 96)])
def test_the_mlp_has_the_width_that_is_named(mlp: str, width: int | None, first: int) -> None:
    backbone = build_backbone(replace(ROPE, mlp=mlp, mlp_width=width))  # type: ignore[arg-type]
    assert backbone.trunk.get_submodule("blocks.0.mlp.fc1").out_features == first


@pytest.mark.parametrize("name", ["vit_small_dinov3", "vit_base_dinov3", "vit_large_dinov3"])
def test_named_models_have_the_shapes_of_timms(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name.replace("_dinov3", "_patch16_dinov3_qkvb"), num_classes=0)
        ours = build_backbone(MODELS[name])
    found = {key: tensor.shape for key, tensor in to_timm(ours.trunk.state_dict()).items()}
    assert found == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb"])
def test_timms_own_models_become_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    made = []

    def small(*args: object, **options: object) -> nn.Module:
        torch.manual_seed(0)
        made.append(create(*args, **options, depth=2))  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in made[-1].parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return made[-1].eval()

    monkeypatch.setattr(timm, "create_model", small)
    backbone, x = build_timm(name).eval(), images(32, 48)
    assert backbone.config.timm_model is None
    with torch.no_grad():
        expected, found = made[0].forward_features(x), backbone(x)
    torch.testing.assert_close(found.cls, expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.patches.flatten(1, 2), expected[:, 5:], rtol=1e-4, atol=1e-4)


def test_factors_of_coordinates_are_drawn_for_each_block_of_a_student_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DINOv3 draws in the loop over blocks, and keeps its teacher in evaluation mode."""
    settings = {"model": "vit_small_dinov3", "objective": "none", "patch_size": 4}
    settings |= {"backbone": {"embed_dim": 16, "depth": 3, "num_heads": 2, "rope_rescale": 2.0}}
    settings |= {"crops": {"global_size": 16, "local_size": 12, "num_local": 2}}
    student_teacher, scales = tiny_student_teacher(**settings), []
    drawn = vit.rope_rotation
    monkeypatch.setattr(vit, "rope_rotation", lambda *given: (scales.append(given[3]), drawn(*given))[1])
    x, student = images(16, 16), student_teacher.student.backbone
    student_teacher.teacher.train().backbone(x)
    student.eval()(x)
    assert set(scales) == {1.0}
    scales.clear()
    student.train()
    torch.manual_seed(3)
    first, scales_of_first = student(x).patches, tuple(scales)
    assert len(set(scales_of_first)) == len(scales_of_first) == 3
    torch.manual_seed(3)
    assert torch.equal(student(x).patches, first)
    for _ in range(100):
        student.rotation(1, 1)
    assert 0.5 <= min(scales) < 0.6
    assert 1.8 < max(scales) <= 2


@pytest.mark.parametrize("model", ["vit_tiny", "resnet50"])
def test_factors_of_coordinates_need_rotary_positions(model: str) -> None:
    with pytest.raises(ValueError, match=r"rope_rescale is .* rotary positions.*leave it out"):
        tiny_student_teacher(model=model, objective="none", backbone={"rope_rescale": 2.0})


@pytest.mark.parametrize("objective", ["none", "selfpatch+sere"])
def test_a_run_trains_every_parameter_and_loads_back(objective: str) -> None:
    settings = {"method": "ibot", "objective": objective, "model": "vit_small_dinov3", "patch_size": 4}
    settings |= {"backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2}}
    settings |= {"crops": {"global_size": 16, "local_size": 12, "num_local": 2}}
    student_teacher = tiny_student_teacher(**settings)
    assert student_teacher.student.backbone.config.rope  # type: ignore[union-attr]
    training_step(student_teacher, [tiny_views(4)], plain_sgd(student_teacher), hyperparameters(), OptimizerConfig())
    without = [n for n, p in student_teacher.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    file = io.BytesIO()
    torch.save(student_teacher.state_dict(), file)
    file.seek(0)
    again = tiny_student_teacher(**settings)
    again.load_state_dict(torch.load(file, weights_only=True))
    x = images(16, 16)
    assert torch.equal(again.teacher.backbone(x).patches, student_teacher.teacher.backbone(x).patches)
