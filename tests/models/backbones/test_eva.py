"""ViTs of timm's class `Eva`: timm's own features, facets, masks, layers, and what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from selfpatch.models.backbones.build import build_backbone, build_timm
from selfpatch.models.backbones.eva import Eva
from selfpatch.models.layers.lora import LoraLinear, merge_adapters
from tests.helpers import tiny_eva

NAMES = pytest.mark.parametrize("name", tiny_eva.__all__)
IMAGES = torch.randn(2, 3, 24, 40, generator=torch.manual_seed(0))


@torch.no_grad()
def random_eva(name: str) -> Eva:
    backbone = build_timm(name).eval()
    assert isinstance(backbone, Eva)
    generator = torch.manual_seed(1)
    for parameter in backbone.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return backbone


@NAMES
@torch.no_grad()
def test_features_are_timms(name: str) -> None:
    """At another grid than the stored one, and through a configuration and a state dict."""
    backbone = random_eva(name)
    again = build_backbone(backbone.config).eval()
    again.load_state_dict(backbone.state_dict())
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    averages = not isinstance(theirs.fc_norm, nn.Identity)
    prefix = "fc_norm." if averages else "norm."
    state = {
        k.replace("norm.", prefix) if k.startswith("norm.") else k: x for k, x in backbone.trunk.state_dict().items()
    }
    theirs.attn_pool = None
    theirs.load_state_dict(state)
    features = theirs.forward_features(IMAGES)
    patches = theirs.fc_norm(features[:, theirs.num_prefix_tokens :]).unflatten(1, (3, 5))
    image = theirs.forward_head(features, pre_logits=True) if averages else features[:, 0]
    for network in (backbone, again):
        tokens = network(IMAGES)
        torch.testing.assert_close(tokens.patches, patches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.cls, image, rtol=1e-5, atol=1e-5)
        assert torch.equal(network.maps(IMAGES, [1, 2])[1], tokens.raw_patches)
        assert torch.equal(network.last_tokens(IMAGES, 2)[-1].patches, tokens.patches)


@NAMES
@torch.no_grad()
def test_facets_are_the_inputs_of_attention(name: str) -> None:
    backbone, normed = random_eva(name), list[Tensor]()
    block = backbone.trunk.blocks[1]
    block.norm1.register_forward_hook(lambda _, __, output: normed.append(output))
    backbone(IMAGES)
    state = block.attn.state_dict()
    if "qkv.weight" in state:
        weights = state["qkv.weight"].split(16)
        biases = state["qkv.bias"].split(16) if "qkv.bias" in state else (state["q_bias"], 0.0, state["v_bias"])
    else:
        weights, biases = ([state.get(f"{part}_proj.{kind}", 0.0) for part in "qkv"] for kind in ("weight", "bias"))
    for facet, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        expected = (normed[0] @ weight.T + bias)[:, -15:].unflatten(1, (3, 5))
        torch.testing.assert_close(backbone.facet(IMAGES, facet, block=1), expected, rtol=1e-5, atol=1e-5)


@NAMES
def test_masks_layers_and_frozen_blocks(name: str) -> None:
    backbone = random_eva(name)
    backbone.add_mask_token()
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[:, 0, 0] = True
    other = IMAGES.clone()
    other[:, :, :8, :8] = 7.0
    assert torch.equal(backbone(IMAGES, mask).patches, backbone(other, mask).patches)
    layers = {backbone.layer_of(name) for name, _ in backbone.named_parameters() if name != "mask_token"}
    assert layers == {0, 1, 2, 3}
    backbone.freeze_first(1)
    backbone(IMAGES, mask).patches.square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name != "mask_token" and backbone.layer_of(name) <= 1), name


@NAMES
def test_adapters_reach_every_linear_layer_and_merge(name: str) -> None:
    backbone = random_eva(name)
    expected = backbone(IMAGES).patches.detach()
    backbone.add_adapters(2, 4.0, ("qkv", "proj", "fc1", "fc2"), last_blocks=None)
    blocks = backbone.trunk.blocks
    adapted = {layer for layer, part in blocks.named_modules() if isinstance(part, LoraLinear)}
    assert adapted == {layer.removesuffix(".base") for layer, m in blocks.named_modules() if isinstance(m, nn.Linear)}
    torch.testing.assert_close(backbone(IMAGES).patches, expected)
    backbone(IMAGES).patches.square().sum().backward()
    assert all(layer.lora_b.grad.any() for layer in blocks.modules() if isinstance(layer, LoraLinear))
    for layer in adapted:
        nn.init.normal_(blocks.get_parameter(f"{layer}.lora_b"), std=0.1)
    learned = backbone(IMAGES).patches.detach()
    assert not torch.allclose(learned, expected)
    merge_adapters(backbone)
    torch.testing.assert_close(backbone(IMAGES).patches.detach(), learned, rtol=1e-4, atol=1e-4)


def test_keys_that_heads_share_have_no_facet() -> None:
    backbone = build_timm("vit_rope_mixed_of_tests")
    attention = backbone.trunk.blocks[0].attn
    attention.qkv, attention.q_proj = None, nn.Linear(16, 16)
    attention.k_proj = attention.v_proj = nn.Linear(16, 8)
    with pytest.raises(ValueError, match=r"several heads of .* share their keys; use the facet token"):
        backbone.facet(IMAGES, "key", block=0)


def test_the_class_tokens_attention_is_not_read() -> None:
    with pytest.raises(ValueError, match=r"is not read from timm's eva02_of_tests; use another ViT, or"):
        build_timm(tiny_eva.EVA02).keep_class_attention()
