"""Keys, tokens and class attention of networks of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.evaluate import evaluate
from selfpatch.evaluation.object_discovery.features import PatchView
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ResNetConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from tests.evaluation.object_discovery.conftest import ColourAgainstGround, tiny_vit


def test_keys_of_a_vit_at_full_resolution() -> None:
    """Zeros are laid around what is normalised, not around the image."""
    encoder = tiny_vit()
    image = torch.randint(256, (3, 45, 50), generator=torch.manual_seed(1), dtype=torch.uint8)
    view = PatchView(encoder, ObjectDiscoveryConfig())
    padded = view.padded(image)
    assert padded.shape == (1, 3, 48, 56)
    assert (padded[..., 45:, :] == 0).all()
    assert (padded[..., 50:] == 0).all()
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    torch.testing.assert_close(padded[0, :, :45, :50], (image / 255 - mean) / std)
    assert torch.equal(view.features(padded), encoder.backbone.facet(padded, "key")[0])
    assert torch.equal(
        PatchView(encoder, ObjectDiscoveryConfig(facet="query", block=2)).features(padded),
        encoder.backbone.facet(padded, "query", 1)[0],
    )


def test_centred_keys_lose_the_bias_that_attention_ignores() -> None:
    encoder, biased = tiny_vit(), tiny_vit()
    biased.load_state_dict(encoder.state_dict())
    padded = torch.randn(1, 3, 32, 40, generator=torch.manual_seed(2))
    with torch.no_grad():
        biased.backbone.trunk.blocks[-1].attn.qkv.bias[16:32] += 30 * torch.rand(16, generator=torch.manual_seed(3))
    plain, centred = ObjectDiscoveryConfig(), ObjectDiscoveryConfig(centre=True)
    views = {
        name: (PatchView(encoder, c), PatchView(biased, c)) for name, c in (("plain", plain), ("centred", centred))
    }
    attention, same = (view.class_attention(padded) for view in views["plain"])
    torch.testing.assert_close(attention, same)
    keys, shifted = (view.features(padded) for view in views["plain"])
    assert not torch.allclose(keys, shifted, atol=1)
    assert (shifted.flatten(0, 1) @ shifted.flatten(0, 1).T > 0).all(), "LOST takes all patches for one object"
    centred_keys, centred_shifted = (view.features(padded) for view in views["centred"])
    torch.testing.assert_close(centred_keys, keys - keys.mean((0, 1)))
    torch.testing.assert_close(centred_keys, centred_shifted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 2])
def test_class_attention_equals_the_loop(registers: int) -> None:
    encoder = tiny_vit(registers=registers)
    padded = torch.randn(1, 3, 32, 40, generator=torch.manual_seed(2))
    attention = PatchView(encoder, ObjectDiscoveryConfig()).class_attention(padded)
    trunk = encoder.backbone.trunk
    with torch.no_grad():
        tokens = trunk._pos_embed(trunk.patch_embed(padded))
        for block in trunk.blocks[:-1]:
            tokens = block(tokens)
        last = trunk.blocks[-1]
        qkv = last.attn.qkv(last.norm1(tokens))[0]  # [n, 3 * 16]
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        query, keys = qkv[0, :16][part], qkv[:, 16:32][:, part]
        weights = torch.stack([query @ key / 8**0.5 for key in keys]).softmax(0)
        torch.testing.assert_close(attention[head].flatten(), weights[1 + registers :])


def test_class_attention_sees_rotated_keys() -> None:
    torch.manual_seed(0)
    shape = ViTConfig(embed_dim=16, depth=2, num_heads=2, patch_size=8, grid=4, rope=True, num_registers=1)
    encoder = BranchEncoder(build_backbone(shape), None).eval()
    attention = encoder.backbone.trunk.blocks[1].attn
    seen: list[torch.Tensor] = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: (seen.append(attend(q, k)), v)[1])
        padded = torch.randn(1, 3, 32, 40, generator=torch.manual_seed(2))
        found = PatchView(encoder, ObjectDiscoveryConfig()).class_attention(padded)
        encoder.patches(padded)  # all blocks
    assert attention.num_heads == 2
    torch.testing.assert_close(found.flatten(1), seen[-1][0, :, 0, 2:])


def attend(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)


def test_features_of_what_is_no_vit(voc: Path) -> None:
    encoder = ColourAgainstGround(8)
    padded = torch.rand(1, 3, 16, 24)
    features = PatchView(encoder, ObjectDiscoveryConfig()).features(padded)
    tokens = encoder.patches(padded)[0].movedim(0, -1)
    torch.testing.assert_close(features, (tokens - tokens.mean()) / (tokens.var(correction=0) + 1e-5).sqrt())
    settings = evaluate(encoder, voc, ObjectDiscoveryConfig(methods=("lost",))).settings
    assert settings["facet"] == "token"
    tokens_of_a_vit = PatchView(tiny_vit(), ObjectDiscoveryConfig(facet="token")).features(padded)
    torch.testing.assert_close(tokens_of_a_vit, tiny_vit().patches(padded)[0].movedim(0, -1))
    inner = PatchView(tiny_vit(), ObjectDiscoveryConfig(facet="token", block=2)).features(padded)
    assert torch.equal(inner, tiny_vit().backbone.maps(padded, [2])[0][0])


def test_a_dilated_resnet_as_the_released_lost_has_it(voc: Path) -> None:
    """Images padded to the stride of 16, maps of that stride, standardised."""
    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 1, 1, 1), width=4)
    encoder = BranchEncoder(build_backbone(config), None).eval()
    view = PatchView(encoder, ObjectDiscoveryConfig(output_stride=16))
    padded = view.padded(torch.zeros(3, 40, 50, dtype=torch.uint8))
    assert padded.shape == (1, 3, 48, 64)
    assert view.features(padded).shape == (3, 4, 128)
    settings = evaluate(encoder, voc, ObjectDiscoveryConfig(methods=("lost",), output_stride=16)).settings
    assert [settings[name] for name in ("stage", "stride", "patch_size", "block")] == [4, 16, 32, None]


def test_words_for_a_vit_without_what_is_asked(voc: Path) -> None:
    with pytest.raises(ValueError, match="block is 4, but this vit has 3; use 1 to 3"):
        evaluate(tiny_vit(), voc, ObjectDiscoveryConfig(block=4))
    with pytest.raises(ValueError, match="stage is 1, but a vit has blocks; use block, 1 to 3"):
        evaluate(tiny_vit(), voc, ObjectDiscoveryConfig(stage=1))
    with pytest.raises(ValueError, match="this network has none; use lost or tokencut"):
        evaluate(tiny_vit(class_token=False), voc, ObjectDiscoveryConfig(methods=("lost", "attention")))
