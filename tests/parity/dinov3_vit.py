"""Replays of DINOv3's rotary positions, and of its ViT: weights under released keys through the importer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from selfpatch.ops.rope import rope_periods, rope_rotation, rotate_patches
from tests.parity.check import TIGHT, Check, compare
from tests.parity.dinov2_vit import WEIGHTS, compare_tokens, load_released


def replay_rope(bundle: Path) -> Iterator[Check]:
    """Compare periods, angles, and rotated queries and keys."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    periods = rope_periods(t["q"].shape[-1], expected["base"])
    yield compare("periods", periods, t["periods"], TIGHT)
    rotation = rope_rotation(*expected["grid"], periods)
    yield compare("sines", rotation[0], t["sin"], TIGHT)
    yield compare("cosines", rotation[1], t["cos"], TIGHT)
    rescaled, _ = rope_rotation(*expected["grid"], periods, expected["rescale_of_sin_rescaled"])
    yield compare("sines of rescaled coordinates", rescaled, t["sin_rescaled"], TIGHT)
    for name in ("q", "k"):
        yield compare(f"rotated {name}", rotate_patches(t[name], rotation), t[f"{name}_rotated"], TIGHT)


@torch.no_grad()
def replay_dinov3_vit(bundle: Path) -> Iterator[Check]:
    """Compare tokens before and after the final norm, and those of masked patches."""
    t = load_file(bundle / "tensors.safetensors")
    backbone = load_released({k.removeprefix(WEIGHTS): x for k, x in t.items() if k.startswith(WEIGHTS)})
    yield from compare_tokens(backbone, t, t["out.storage"])
    height, width = (side // backbone.patch_size for side in t["image"].shape[-2:])
    masked = backbone(t["image"], t["mask"].bool().unflatten(1, (height, width)))
    yield compare("CLS token of a masked image", masked.cls, t["masked.cls"], TIGHT)
    yield compare("patches of a masked image", masked.patches.flatten(1, 2), t["masked.patches"], TIGHT)
