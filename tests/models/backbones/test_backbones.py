"""Backbones: position embeddings at other sizes, any size that the patch divides, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone, build_timm
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.branch import Branch
from selfpatch.models.encoder import BranchEncoder, image_token
from selfpatch.models.pooling import AveragePool

GRID = 5


def tiny(patch_size: int = 4, **fields) -> ViTConfig:
    return ViTConfig(embed_dim=8, depth=2, num_heads=2, patch_size=patch_size, grid=GRID, **fields)


def position_map(backbone: Backbone, height: int, width: int) -> Tensor:
    """[h, w, D] what the trunk adds at each patch: its raw patches once everything else of it is silenced."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "pos_embed" not in name:
                parameter.zero_()
        return backbone(torch.randn(1, 3, height, width)).raw_patches[0]


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.75, which torch's bicubic mode uses."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def sampling_matrix(n: int, grid: int, scale: float) -> Tensor:
    """[n, grid] of a bicubic resampling; pixel i is at (i + 1/2) / scale - 1/2; no antialias, edges repeated."""
    matrix = torch.zeros(n, grid, dtype=torch.float64)
    for i in range(n):
        source = (i + 0.5) / scale - 0.5
        first = math.floor(source) - 1
        for place in range(first, first + 4):
            matrix[i, min(max(place, 0), grid - 1)] += cubic(source - place)
    return matrix


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("h", "w"), [(3, 3), (5, 7), (2, 11), (8, 4), (6, 5)])
def test_released_positions_are_bicubic_with_a_tenth_added(h: int, w: int, class_token: bool) -> None:
    backbone = build_backbone(tiny(class_token=class_token))
    stored = backbone.trunk.pos_embed.detach()[0, int(class_token) :].view(GRID, GRID, -1).double()
    rows, columns = (sampling_matrix(n, GRID, (n + 0.1) / GRID) for n in (h, w))
    expected = torch.einsum("yg,xk,gkd->yxd", rows, columns, stored)
    torch.testing.assert_close(position_map(backbone, 4 * h, 4 * w).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position_embedding", ["released", "size"])
@pytest.mark.parametrize("class_token", [True, False])
def test_positions_of_the_stored_grid_are_used_as_they_are(class_token: bool, position_embedding: str) -> None:
    backbone = build_backbone(tiny(class_token=class_token, position_embedding=position_embedding))
    stored = backbone.trunk.pos_embed.detach()[0, int(class_token) :].view(GRID, GRID, -1)
    assert torch.equal(position_map(backbone, 4 * GRID, 4 * GRID), stored)


def test_positions_by_size_are_resized_with_antialias() -> None:
    released, by_size = (
        build_backbone(tiny(class_token=False, position_embedding=name)) for name in ("released", "size")
    )
    by_size.load_state_dict(released.state_dict())
    stored = by_size.trunk.pos_embed.detach().view(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(stored, size=(3, 7), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(position_map(by_size, 12, 28), expected)
    assert not torch.allclose(position_map(released, 12, 28), expected, atol=1e-4)


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 2), (5, 5), (3, 6)])
def test_any_size_that_the_patch_divides(patch_size: int, h: int, w: int) -> None:
    for config in (tiny(patch_size), tiny(patch_size, class_token=False, final_norm=False)):
        tokens = build_backbone(config)(torch.randn(2, 3, patch_size * h, patch_size * w))
        assert tokens.patches.shape == tokens.raw_patches.shape == (2, h, w, 8)
        assert (tokens.cls is None) == (not config.class_token)
        assert torch.equal(tokens.patches, tokens.raw_patches) == (not config.final_norm)


def test_tokens_are_before_and_after_the_final_norm() -> None:
    backbone = build_backbone(tiny())
    with torch.no_grad():
        backbone.trunk.norm.weight.uniform_(0.5, 2)
    tokens = backbone(torch.randn(2, 3, 12, 20))
    normed = F.layer_norm(tokens.raw_patches, (8,), backbone.trunk.norm.weight, backbone.trunk.norm.bias, eps=1e-6)
    torch.testing.assert_close(tokens.patches, normed)
    features = backbone.trunk.forward_features(torch.zeros(1, 3, 20, 20))  # timm's own way through the trunk
    tokens = backbone(torch.zeros(1, 3, 20, 20))
    torch.testing.assert_close(torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], 1), features)


@pytest.mark.parametrize("size", [(18, 16), (16, 18), (2, 16)])
def test_a_patch_that_does_not_divide_a_side_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"patch size 4 does not divide the image side (18|2); use a multiple of 4, e.g. (16|20|4)"
    ):
        build_backbone(tiny())(torch.zeros(1, 3, *size))


def test_a_pool_takes_class_token_and_final_norm_away() -> None:
    backbone = build_backbone(tiny().for_pool())
    assert not backbone.has_class_token
    assert "trunk.norm.weight" not in backbone.state_dict()
    assert backbone.trunk.pos_embed.shape == (1, GRID * GRID, 8)


def test_the_class_token_starts_as_dinos_does() -> None:
    spread = build_backbone(ViTConfig(embed_dim=768, depth=1, num_heads=12)).trunk.cls_token.std()
    assert 0.015 < float(spread.detach()) < 0.025


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_models_of_timm_by_name(name: str) -> None:
    """One with a CLS token; one whose prefix is a register token, which is no image token."""
    backbone = build_timm(name)
    tokens = backbone(torch.randn(2, 3, 32, 48))
    assert tokens.patches.shape == (2, 2, 3, backbone.dim)
    assert backbone.has_class_token == (name == "test_vit")
    assert (tokens.cls is not None) == backbone.has_class_token
    again = build_backbone(backbone.config, drop_path=0.1)
    assert again.config == backbone.config
    again.load_state_dict(backbone.state_dict())


def test_a_model_of_timm_under_a_pool_gives_raw_patches() -> None:
    backbone = build_backbone(build_timm("test_vit").config.for_pool())
    tokens = backbone(torch.randn(1, 3, 32, 32))
    assert torch.equal(tokens.patches, tokens.raw_patches)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_small_patch16_225", r"unknown model .*; use one of vit_tiny, vit_small, .*e\.g\. vit_small_patch16_224"),
        ("resnet18", "'resnet18' is a ResNet; a ViT .* a Swin or a ResNet of bottlenecks is needed"),
        ("test_efficientnet", "'?test_efficientnet'?"),
    ],
)
def test_models_of_other_families_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_timm(name)


def test_the_teacher_drops_no_path_but_stays_in_training_mode() -> None:
    torch.manual_seed(0)
    student = Branch(
        build_backbone(tiny(class_token=False, final_norm=False), drop_path=0.9), AveragePool(8), {}
    ).train()
    teacher, crops = student.make_teacher(), [torch.randn(2, 4, 3, 20, 20)]
    assert not torch.equal(student(crops).image, student(crops).image)
    assert torch.equal(teacher(crops).image, teacher(crops).image)
    assert teacher.training
    assert torch.equal(teacher(crops).image, student.eval()(crops).image)


def test_image_tokens_come_from_pool_class_token_or_mean() -> None:
    images = torch.randn(2, 3, 20, 20)
    with_token, without = build_backbone(tiny())(images), build_backbone(tiny(class_token=False))(images)
    assert image_token(with_token, None) is with_token.cls
    torch.testing.assert_close(image_token(without, None), without.patches.flatten(1, 2).mean(1))
    torch.testing.assert_close(
        image_token(with_token, AveragePool(8)),
        F.layer_norm(with_token.raw_patches.flatten(1, 2).mean(1), (8,), eps=1e-6),
    )


def test_a_branch_encodes_view_by_view() -> None:
    branch = Branch(build_backbone(tiny()), None, {}).eval()
    crops = [torch.randn(2, 3, 3, 20, 20), torch.randn(4, 3, 3, 12, 12)]
    encoding = branch(crops)
    assert encoding.image.shape == (6, 3, 8)
    assert [tokens.patches.shape for tokens in encoding.tokens_per_resolution] == [(6, 5, 5, 8), (12, 3, 3, 8)]
    for v, view in enumerate([*crops[0], *crops[1]]):
        torch.testing.assert_close(encoding.image[v], branch.backbone(view).cls)


@pytest.mark.parametrize("normed", [True, False])
def test_an_encoder_gives_channels_first_maps(normed: bool) -> None:
    backbone = build_backbone(tiny())
    encoder, images = BranchEncoder(backbone, None, normed_patches=normed), torch.randn(2, 3, 12, 20)
    tokens = backbone(images)
    expected = tokens.patches if normed else tokens.raw_patches
    assert torch.equal(encoder.patches(images), expected.permute(0, 3, 1, 2))
    assert torch.equal(encoder.image(images), tokens.cls)
    assert not encoder.patches(images).requires_grad
    assert (encoder.dim, encoder.patch_size) == (8, 4)
