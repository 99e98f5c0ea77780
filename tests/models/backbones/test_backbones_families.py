"""Swin, ResNet and the plain ViT behind one face: maps, masks, layers, freezing, shapes."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfpatch.core.cost import measure
from selfpatch.models.backbones.build import build_backbone, build_timm, named_backbone_config
from selfpatch.models.backbones.config import (
    AnyBackboneConfig,
    ConvNeXtConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    backbone_config_from_dict,
)
from selfpatch.models.backbones.convnext_keys import to_timm
from selfpatch.models.backbones.positions import sincos_positions
from selfpatch.models.backbones.vit import ViT

VIT = ViTConfig(embed_dim=8, depth=3, num_heads=2, patch_size=8, grid=4)
SWIN = SwinConfig(embed_dim=8, depths=(1, 2), first_heads=2, window=4)
RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=4)
CONVNEXT = ConvNeXtConfig(embed_dim=4, depths=(1, 2))
CONVNEXT_V2 = ConvNeXtConfig(embed_dim=4, depths=(1, 2, 1, 1), layer_scale=False, response_norm=True, norm_eps=1e-5)
CONFIGS = {"vit": VIT, "swin": SWIN, "resnet": RESNET, "convnext": CONVNEXT, "convnext v2": CONVNEXT_V2}
FAMILIES = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
MASKABLE = pytest.mark.parametrize("config", [VIT, SWIN], ids=["vit", "swin"])


def images(config: AnyBackboneConfig, h: int = 2, w: int = 3, batch: int = 2) -> torch.Tensor:
    p = config.patch_size
    return torch.randn(batch, config.in_channels, p * h, p * w, generator=torch.manual_seed(0))


@FAMILIES
def test_tokens_form_a_map_of_the_size_that_the_config_says(config: AnyBackboneConfig) -> None:
    backbone = build_backbone(config)
    tokens = backbone(images(config))
    assert tokens.patches.shape == tokens.raw_patches.shape == (2, 2, 3, config.dim)
    assert (tokens.cls is None) == (config.family in ("swin", "resnet"))
    assert (backbone.dim, backbone.patch_size, backbone.num_heads) == (config.dim, config.patch_size, config.num_heads)


@FAMILIES
def test_a_config_survives_a_file(config: AnyBackboneConfig) -> None:
    assert backbone_config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_names_stand_for_the_published_sizes() -> None:
    millions = {
        "convnext_tiny": 27.8,
        "convnext_base": 87.6,
        "swin_tiny": 27.5,
        "swin_small": 48.8,
        "resnet50": 23.5,
        "vit_small": 21.7,
        "vit_tiny": 5.5,
    }
    for name, expected in millions.items():
        with torch.device("meta"):
            backbone = build_backbone(named_backbone_config(name))
        assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(expected, abs=0.06)


def test_a_swin_gives_timms_own_features() -> None:
    backbone = build_backbone(SWIN).eval()
    x = images(SWIN, 4, 4)
    torch.testing.assert_close(backbone(x).patches, backbone.trunk.forward_features(x))
    below = build_backbone(SWIN.for_pool())
    assert torch.equal(below(x).patches, below(x).raw_patches)
    assert not any(name.startswith("trunk.norm") for name in below.state_dict())


@pytest.mark.parametrize("config", [CONVNEXT, CONVNEXT_V2])
def test_a_convnext_gives_timms_own_features(config: ConvNeXtConfig) -> None:
    """timm's image feature is the norm of the mean, and not the mean of the normed patches."""
    from timm.models.convnext import ConvNeXt

    backbone = build_backbone(config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    dims, depths = (4, 8, 16, 32), (*config.depths, 1, 1)[:4]
    scale = 1.0 if config.layer_scale else None
    theirs = ConvNeXt(num_classes=0, depths=depths, dims=dims, ls_init_value=scale, use_grn=config.response_norm)
    if len(config.depths) == 2:
        theirs.prune_intermediate_layers([0, 1], prune_head=False)
        theirs.head = nn.Identity()
    state = to_timm(backbone.trunk.state_dict())
    theirs.load_state_dict(state, strict=len(config.depths) == 4)
    for part in theirs.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = config.norm_eps
    x, tokens = images(config), backbone(images(config))
    torch.testing.assert_close(tokens.raw_patches.movedim(-1, 1), theirs.eval().forward_features(x))
    if len(config.depths) == 4:
        torch.testing.assert_close(tokens.cls, theirs(x))
        torch.testing.assert_close(tokens.patches.movedim(-1, 1), theirs.head.norm(theirs.forward_features(x)))
    below = build_backbone(config.for_pool())
    assert torch.equal(below(x).patches, below(x).raw_patches)
    assert not any(name.startswith("trunk.norm") for name in below.state_dict())


def test_a_convnext_of_too_many_stages() -> None:
    with pytest.raises(ValueError, match="a ConvNeXt has at most 4 stages, not 5; shorten its depths"):
        build_backbone(ConvNeXtConfig(depths=(1,) * 5))


@pytest.mark.parametrize("name", ["convnext_tiny_hnf", "convnext_atto_ols", "convnext_zepto_rms", "test_convnext"])
def test_other_convnexts_of_timm_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is a ConvNeXt of another kind than .*; use"):
        build_timm(name)


def test_a_resnet_gives_timms_own_features_in_evaluation() -> None:
    backbone = build_backbone(RESNET)
    x = images(RESNET)
    for _ in range(3):  # running statistics that are not the first ones
        backbone(x)
        for part in backbone.modules():
            if hasattr(part, "update_where"):
                part.update()
    theirs = build_timm_like(RESNET)
    theirs.load_state_dict(backbone.trunk.state_dict())
    torch.testing.assert_close(backbone.eval()(x).patches, theirs.eval().forward_features(x).movedim(1, -1))


def build_timm_like(config: ResNetConfig) -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, config.depths, num_classes=0, channels=(4, 8, 16, 32))


@MASKABLE
def test_masked_patches_do_not_reach_the_tokens(config: AnyBackboneConfig) -> None:
    backbone = build_backbone(config)
    backbone.add_mask_token()
    x = images(config)
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 0, 0] = True
    other = x.clone()
    p = config.patch_size
    other[0, :, p:, 2 * p :] = 9.0
    other[1, :, :p, :p] = -9.0
    assert torch.equal(backbone(x, mask).patches, backbone(other, mask).patches)
    assert not torch.allclose(backbone(x).patches, backbone(other).patches)
    assert torch.equal(backbone(x, torch.zeros_like(mask)).patches, backbone(x).patches)
    backbone(x, mask).patches.square().sum().backward()
    assert backbone.mask_token.grad.abs().sum() > 0


@FAMILIES
def test_layers_count_from_the_embedding_to_the_norm(config: AnyBackboneConfig) -> None:
    backbone = build_backbone(config)
    layers = [backbone.layer_of(name) for name, _ in backbone.named_parameters()]
    inside = range(backbone.num_layers + 1 + (config.family != "resnet") * 1)
    assert set(layers) == set(inside)
    at = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    ordered = [layer for name, layer in at.items() if name != "norm.weight" and ("blocks" in name or "layer" in name)]
    assert ordered == sorted(ordered)


@FAMILIES
def test_frozen_blocks_get_no_gradient_and_the_others_do(config: AnyBackboneConfig) -> None:
    backbone = build_backbone(config)
    backbone.freeze_first(1)
    backbone(images(config)).patches.square().sum().backward()
    for name, parameter in backbone.named_parameters():
        frozen = backbone.layer_of(name) <= 1
        assert parameter.requires_grad == (not frozen)
        if frozen:
            assert parameter.grad is None
    with pytest.raises(ValueError, match=r"backbone.frozen_blocks is 9, but the network has \d blocks; use at most \d"):
        backbone.freeze_first(9)
    with pytest.raises(ValueError, match=r"backbone.frozen_blocks is -9, .*, or at least -\d to train the last ones"):
        backbone.freeze_first(-9)


@FAMILIES
def test_a_negative_number_of_frozen_blocks_counts_those_that_are_trained(config: AnyBackboneConfig) -> None:
    ours, expected = build_backbone(config), build_backbone(config)
    ours.freeze_first(-1)
    expected.freeze_first(expected.num_layers - 1)
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in expected.parameters()]


def test_the_patch_projection_alone_may_be_frozen() -> None:
    for config in (VIT, SWIN):
        backbone = build_backbone(config)
        backbone.freeze_embedding()
        frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
        assert frozen == {"trunk.patch_embed.proj.weight", "trunk.patch_embed.proj.bias"}
    backbone = build_backbone(CONVNEXT)
    backbone.freeze_embedding()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"trunk.stem.0.weight", "trunk.stem.0.bias"}
    with pytest.raises(ValueError, match="freeze_patch_embed is for a ViT or a Swin; a resnet embeds no patches"):
        build_backbone(RESNET).freeze_embedding()


def test_xavier_weights_have_the_bounds_of_their_layers() -> None:
    config = ViTConfig(embed_dim=64, depth=1, num_heads=2, patch_size=4, grid=3)
    backbone = build_backbone(config)
    assert isinstance(backbone, ViT)
    backbone.draw_xavier_weights()
    at = dict(backbone.trunk.named_parameters())
    ins_and_outs = {"attn.qkv": (64, 64), "attn.proj": (64, 64), "mlp.fc1": (64, 256), "mlp.fc2": (256, 64)}
    bounds = {f"blocks.0.{name}": (6 / sum(sizes)) ** 0.5 for name, sizes in ins_and_outs.items()}
    for name, bound in {**bounds, "patch_embed.proj": (6 / (3 * 4 * 4 + 64)) ** 0.5}.items():
        largest = float(at[f"{name}.weight"].detach().abs().max())
        assert 0.98 * bound < largest <= bound, name
        assert not at[f"{name}.bias"].any()
    assert 0 < float(at["cls_token"].detach().abs().max()) < 1e-5


def test_no_batch_norm_of_a_resnet_starts_at_0() -> None:
    norms = [
        p for name, p in build_backbone(RESNET).trunk.named_parameters() if p.ndim == 1 and name.endswith("weight")
    ]
    assert all(torch.equal(p, torch.ones_like(p)) for p in norms)


def test_sincos_positions_by_the_formula() -> None:
    grid, dim = 3, 8
    expected = torch.zeros(grid, grid, dim)
    for y in range(grid):
        for x in range(grid):
            for i in range(dim // 4):
                w = torch.tensor(10000.0 ** (-4 * i / dim))
                for quarter, value in enumerate(((y * w).sin(), (y * w).cos(), (x * w).sin(), (x * w).cos())):
                    expected[y, x, quarter * dim // 4 + i] = value
    torch.testing.assert_close(sincos_positions(grid, dim).view(grid, grid, dim), expected)
    with pytest.raises(ValueError, match="sin-cos positions need a width that 4 divides, not 6"):
        sincos_positions(3, 6)


def test_fixed_positions_are_not_trained_and_leave_the_class_token_alone() -> None:
    backbone = build_backbone(VIT)
    assert isinstance(backbone, ViT)
    backbone.fix_positions()
    assert not backbone.trunk.pos_embed.requires_grad
    assert torch.equal(backbone.trunk.pos_embed[0, 0], torch.zeros(8))
    assert torch.equal(backbone.trunk.pos_embed[0, 1:], sincos_positions(4, 8))


def test_registers_are_no_patches() -> None:
    from dataclasses import replace

    for position_embedding in ("released", "size"):
        config = replace(VIT, num_registers=3, layer_scale=True, mlp="swiglu", position_embedding=position_embedding)
        backbone = build_backbone(config)
        tokens = backbone(images(config))
        assert tokens.patches.shape == (2, 2, 3, 8)
        assert backbone.trunk.pos_embed.shape == (1, 16, 8)
        at_home = backbone(images(config, 4, 4)).patches
        torch.testing.assert_close(at_home.flatten(1, 2), backbone.trunk.forward_features(images(config, 4, 4))[:, 4:])


@pytest.mark.parametrize("name", ["swin_s3_tiny_224", "resnet26", "test_vit4", "convnextv2_atto"])
def test_families_of_timm_by_name(name: str) -> None:
    backbone = build_timm(name)
    again = build_backbone(backbone.config)
    assert again.config == backbone.config
    again.load_state_dict(backbone.state_dict())
    x = images(backbone.config, 1, 2, batch=1)
    assert backbone.eval()(x).patches.shape == (1, 1, 2, backbone.dim)


def test_batch_norms_of_a_resnet_take_in_a_step_when_it_is_finished() -> None:
    backbone, x = build_backbone(RESNET), images(RESNET)
    plain = build_timm_like(RESNET).train()
    plain.load_state_dict(backbone.trunk.state_dict())
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    torch.testing.assert_close(backbone(x).patches, plain.forward_features(x).movedim(1, -1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    for part in backbone.modules():
        if hasattr(part, "update_where"):
            part.update()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[f"trunk.{name}"], tensor)
    assert not torch.equal(backbone.trunk.bn1.running_mean, before["trunk.bn1.running_mean"])


def test_masks_are_laid_on_the_finer_map_of_a_swin() -> None:
    backbone = build_backbone(SWIN)
    backbone.add_mask_token()
    with torch.no_grad():
        backbone.mask_token.fill_(7.0)
    mask = torch.tensor([[[True, False], [False, False]]])
    embedded = torch.zeros(1, 4, 4, 8)
    masked = backbone._mask(embedded, mask)
    expected = F.pad(torch.full((1, 2, 2, 8), 7.0), (0, 0, 0, 2, 0, 2))
    assert torch.equal(masked, expected)


@FAMILIES
def test_inner_maps_lead_to_the_last_one(config: AnyBackboneConfig) -> None:
    backbone, x = build_backbone(config).eval(), images(config, 2, 4)
    count = len(backbone.map_dims)
    maps = backbone.maps(x, range(1, count + 1))
    assert [m.shape[-1] for m in maps] == list(backbone.map_dims)
    assert torch.equal(maps[-1], backbone(x).raw_patches)
    assert torch.equal(backbone.maps(x, [1])[0], maps[0])
    strides = [x.shape[-1] // m.shape[2] for m in maps]
    assert strides == sorted(strides)
    with pytest.raises(ValueError, match=rf"layer is {count + 1}, but this {config.family} has 1 to {count}; use"):
        backbone.maps(x, [1, count + 1])


def test_tokens_of_the_last_blocks_are_normed() -> None:
    backbone, x = build_backbone(VIT).eval(), images(VIT)
    tokens = backbone.last_tokens(x, 2)
    whole = backbone(x)
    assert torch.equal(tokens[-1].cls, whole.cls)
    assert torch.equal(tokens[-1].patches, whole.patches)
    inner = backbone.maps(x, [2])[0]
    assert torch.equal(tokens[0].raw_patches, inner)
    assert torch.equal(tokens[0].patches, backbone.trunk.norm(inner))
    with pytest.raises(ValueError, match="blocks is 4, but the network has 3; use 1 to 3"):
        backbone.last_tokens(x, 4)


@pytest.mark.parametrize("number", [1, 3])
def test_facets_are_the_inputs_of_attention(number: int) -> None:
    backbone, x = build_backbone(VIT).eval(), images(VIT)
    attention = backbone.trunk.blocks[number - 1].attn
    seen: list[torch.Tensor] = []
    handle = attention.qkv.register_forward_hook(lambda _, __, out: seen.append(out))
    backbone(x)
    handle.remove()
    expected = seen[0][:, 1:].unflatten(1, (2, 3)).chunk(3, -1)
    for name, facet in zip(("query", "key", "value"), expected, strict=True):
        assert torch.equal(backbone.facet(x, name, block=number - 1), facet)


@pytest.mark.parametrize(("stride", "strides"), [(16, (4, 8, 16, 16)), (8, (4, 8, 8, 8)), (32, (4, 8, 16, 32))])
def test_a_dilated_resnet_is_timms(stride: int, strides: tuple[int, ...]) -> None:
    """The same weights in a network that timm builds with this output stride give the same map."""
    from timm.models.resnet import Bottleneck, ResNet

    config = ResNetConfig(depths=(1, 2, 2, 3), width=4)
    backbone = build_backbone(config).eval()
    finer = backbone.with_output_stride(stride)
    theirs = ResNet(Bottleneck, config.depths, num_classes=0, channels=(4, 8, 16, 32), output_stride=stride).eval()
    theirs.load_state_dict(backbone.trunk.state_dict())
    x = images(config)
    torch.testing.assert_close(finer(x).patches, theirs.forward_features(x).movedim(1, -1))
    assert finer.map_strides == strides
    assert [x.shape[-1] // m.shape[2] for m in finer.maps(x, range(1, 5))] == list(strides)
    assert backbone.map_strides == (4, 8, 16, 32)
    assert finer.state_dict().keys() == backbone.state_dict().keys()
    backbone.to(torch.float64)
    assert {tensor.dtype for tensor in finer.state_dict().values() if tensor.is_floating_point()} == {torch.float64}
    assert torch.equal(finer.trunk.conv1.weight, backbone.trunk.conv1.weight), "they share their weights"


def test_a_dilated_resnet_is_torchvisions() -> None:
    from torchvision.models.resnet import Bottleneck, ResNet

    backbone = build_backbone(named_backbone_config("resnet50")).eval().with_output_stride(8)
    theirs = ResNet(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True])
    own = {name: part for name, part in backbone.trunk.named_modules() if isinstance(part, nn.Conv2d)}
    for name, part in theirs.named_modules():
        if isinstance(part, nn.Conv2d):
            assert (own[name].stride, own[name].dilation, own[name].padding) == (
                part.stride, part.dilation, part.padding,
            )  # fmt: skip


def test_strides_removed_without_dilation() -> None:
    backbone = build_backbone(ResNetConfig(depths=(1, 1, 2, 1), width=4))
    finer = backbone.with_output_stride(8, dilate=False)
    convolutions = [part for part in finer.trunk.layer3.modules() if isinstance(part, nn.Conv2d)]
    assert {(part.stride, part.dilation) for part in convolutions} == {((1, 1), (1, 1))}
    assert finer.map_strides == (4, 8, 8, 8)
    with pytest.raises(ValueError, match="this one pools there; choose a stage instead"):
        build_timm("resnet26d").with_output_stride(16)


@pytest.mark.slow
def test_a_dilated_resnet_costs_more_and_is_estimated_without_values() -> None:
    """A dry run moves the whole network off the meta device, and the dilated one with it."""
    with torch.device("meta"):
        backbone = build_backbone(RESNET)
        finer = backbone.with_output_stride(8)
    plain, dilated = (
        measure(
            lambda network=network: network(torch.zeros(1, 3, 64, 64)).patches.sum(), [backbone], torch.device("cpu")
        )
        for network in (backbone, finer)
    )
    assert dilated.forward_flops > plain.forward_flops > 0
