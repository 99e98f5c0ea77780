"""Crops of several sizes in one pass of a ViT: the features and gradients of one pass for each size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfpatch.core.reference import use_references
from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Batch
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.backbones.packing import Draws, Packing
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.backbones.vit_block import ViTBlock
from tests.helpers.devices import DEVICES

SIZES = ((4, 16, 16), (5, 12, 12), (3, 8, 20))


def vit(drop_path: float = 0.4, **changes: Any) -> ViT:
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=4, grid=4, **changes)
    backbone = build_backbone(config, drop_path=drop_path)
    assert isinstance(backbone, ViT)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return backbone.train()


def batches(*, masked: bool = False, device: str = "cpu") -> list[Batch]:
    """Return images of three sizes, of which the first ones may be masked."""
    generator = torch.manual_seed(1)
    images = [torch.randn(n, 3, h, w, generator=generator).to(device) for n, h, w in SIZES]
    mask = (torch.rand(4, 4, 4, generator=generator) < 0.4).to(device)
    return [(images[0], mask if masked else None), *((of_size, None) for of_size in images[1:])]


def results(
    backbone: ViT, encode: Callable[[Sequence[Batch]], list[Tokens]], given: list[Batch], autocast: bool = False
) -> tuple[list[Tokens], dict[str, Tensor], Tensor]:
    """Return the tokens, the gradients by parameter, and the state of the generator after both passes."""
    backbone.zero_grad()
    torch.manual_seed(2)
    device = given[0][0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        found = encode(given)
    loss = torch.zeros((), device=device)
    for each in found:
        for x in (each.patches, each.raw_patches, *([] if each.cls is None else [each.cls])):
            loss = loss + (x.float() * torch.linspace(-1, 1, x.numel(), device=device).view(x.shape)).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return found, gradients, torch.get_rng_state()


def assert_equal_to_separate_passes(backbone: ViT, *, masked: bool = False) -> None:
    given = batches(masked=masked)
    tokens, gradients, state = results(backbone, backbone.forward_each, given)
    packed_tokens, packed_gradients, packed_state = results(backbone, backbone.forward_packed, given)
    torch.testing.assert_close(packed_tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-4, atol=1e-4)
    assert torch.equal(packed_state, state), "both draw as much"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_token": False},
        {"num_registers": 3, "layer_scale": True},
        {"class_token": False, "num_registers": 2, "mlp": "swiglu", "final_norm": False},
        {"rope": True, "num_registers": 2},
        {"drop_path": 0.0, "position_embedding": "size"},
    ],
    ids=str,
)
def test_packed_crops_are_crops_of_separate_passes(changes: dict[str, Any]) -> None:
    assert_equal_to_separate_passes(vit(**changes))
    assert_equal_to_separate_passes(vit(**changes).eval())


def test_drawn_rotations_are_those_of_separate_passes() -> None:
    backbone = vit(rope=True)
    backbone.rescale_rope(2.0)
    assert_equal_to_separate_passes(backbone)


def test_the_mask_token_is_where_it_is_in_separate_passes() -> None:
    backbone = vit()
    backbone.add_mask_token()
    nn.init.normal_(backbone.mask_token)
    assert_equal_to_separate_passes(backbone, masked=True)
    assert backbone.mask_token.grad.abs().sum() > 0


def test_blocks_may_be_frozen_adapted_or_recomputed() -> None:
    frozen, adapted, recomputed = vit(), vit(), vit()
    frozen.freeze_first(2)
    adapted.add_adapters(2, 4, ("qkv", "proj", "fc1", "fc2"), 2)
    for layer in adapted.modules():
        if hasattr(layer, "lora_b"):
            nn.init.normal_(layer.lora_b)
    for block in recomputed.blocks():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for backbone in (frozen, adapted, recomputed):
        assert_equal_to_separate_passes(backbone)


def test_the_attention_of_class_tokens_is_that_of_separate_passes() -> None:
    backbone = vit(rope=True)
    backbone.keep_class_attention()
    each, packed = (
        results(backbone, encode, batches())[0] for encode in (backbone.forward_each, backbone.forward_packed)
    )
    assert packed[2].class_attention.shape == (3, 2, 2, 5)
    torch.testing.assert_close(packed, each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_in_bfloat16_packed_crops_are_as_near_to_float32(device: str) -> None:
    backbone, given = vit(rope=True, drop_path=0.0).to(device), batches(device=device)
    exact = results(backbone, backbone.forward_each, given)[1]
    each, packed = (
        results(backbone, encode, given, autocast=True)[1]
        for encode in (backbone.forward_each, backbone.forward_packed)
    )

    def error(gradients: dict[str, Tensor]) -> float:
        return sum(float((gradients[name] - exact[name]).norm() / exact[name].norm()) for name in exact)

    assert error(packed) <= 1.2 * error(each)


def test_blocks_run_once_for_all_sizes_and_the_reference_once_for_each() -> None:
    backbone, calls = vit(), []
    backbone.trunk.blocks[0].register_forward_hook(lambda block, inputs, output: calls.append(inputs[0].shape))
    packed = backbone.forward_packed(batches())
    assert calls == [(4 * 17 + 5 * 10 + 3 * 11, 16)]
    with use_references():
        backbone.forward_packed(batches())
    assert [len(shape) for shape in calls[1:]] == [3, 3, 3]
    assert [each.patches.shape for each in packed] == [(4, 4, 4, 16), (5, 3, 3, 16), (3, 2, 5, 16)]


def test_a_size_is_refused_as_in_its_own_pass() -> None:
    with pytest.raises(ValueError, match="patch size 4 does not divide the image side 14"):
        vit().forward_packed([*batches(), (torch.zeros(1, 3, 14, 16), None)])


def test_tokens_are_packed_image_after_image() -> None:
    tokens = [torch.arange(6.0).view(2, 3, 1), torch.arange(6.0, 10).view(1, 4, 1)]
    packing = Packing(tokens, heads=1)
    assert packing.offsets is None, "a CPU has no kernel for all sizes"
    x = packing.pack(tokens)
    assert x.flatten().tolist() == list(range(10))
    torch.testing.assert_close(packing.unpack(x), tokens)
    kept = (torch.tensor([0.0, 2.0]), torch.tensor([2.0]))
    drawn = packing.of_block([Draws(None, (None, factors)) for factors in kept])
    assert drawn.kept[0] is None
    assert drawn.kept[1].flatten().tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 2, 2]


def test_the_dropped_are_whole_images() -> None:
    """Unlike a draw for each token, which would leave the mean the same."""
    block = copy.deepcopy(vit(drop_path=0.9).trunk.blocks[-1])
    assert isinstance(block, ViTBlock)
    tokens = [torch.randn(40, 3, 16), torch.randn(30, 2, 16)]
    packing = Packing(tokens, heads=2)
    draws = [Draws(None, (torch.zeros(len(x)), torch.arange(len(x)) % 2.0)) for x in tokens]
    moved = packing.unpack(block(packing.pack(tokens), packed=packing.of_block(draws)))
    for before, after in zip(tokens, moved, strict=True):
        changed = (after != before).any(-1)
        assert torch.equal(changed, (torch.arange(len(before)) % 2 == 1)[:, None].expand_as(changed))
