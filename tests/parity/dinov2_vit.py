"""Replay of a DINOv2 ViT with registers: weights under released keys through the importer, and its tokens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_backbone
from selfpatch.checkpoints.read import read_weights
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.vit import ViT
from tests.parity.check import TIGHT, Check, compare

WEIGHTS = "weights."


@torch.no_grad()
def replay_dinov2_vit(bundle: Path) -> Iterator[Check]:
    """Compare tokens at the stored grid, at another grid, and of masked patches."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    backbone = load_released(
        {k.removeprefix(WEIGHTS): x for k, x in t.items() if k.startswith(WEIGHTS)}, expected["heads"]
    )
    yield from compare_tokens(backbone, t, t["out.registers"])
    other = backbone(t["image_other_grid"])
    yield compare("CLS token at another grid", other.cls, t["other_grid.cls"], TIGHT)
    yield compare("patches at another grid", other.patches.flatten(1, 2), t["other_grid.patches"], TIGHT)
    masked = backbone(t["image"], t["mask"].bool().unflatten(1, expected["stored_grid"]))
    yield compare("patches of a masked image", masked.patches.flatten(1, 2), t["masked.patches"], TIGHT)


def compare_tokens(backbone: ViT, t: dict[str, Tensor], registers: Tensor) -> Iterator[Check]:
    """Compare the CLS token, the patches and the registers [B, R, D] of the bundle's image, with and without norm."""
    tokens = backbone(t["image"])
    yield compare("CLS token", tokens.cls, t["out.cls"], TIGHT)
    yield compare("patches", tokens.patches.flatten(1, 2), t["out.patches"], TIGHT)
    *_, raw = backbone._outputs(backbone.embed(t["image"]), backbone.num_layers)
    yield compare("tokens before the final norm", raw, t["out.prenorm"], TIGHT)
    yield compare("registers", backbone.trunk.norm(raw)[:, 1 : 1 + registers.shape[1]], registers, TIGHT)


def load_released(released: dict[str, Tensor], num_heads: int | None = None) -> ViT:
    """Return a ViT that takes masks, with weights written to a file under released keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save(released, path)
        weights = read_weights(str(path), LoadConfig(num_heads=num_heads))
    backbone = build_backbone(weights.config)
    backbone.add_mask_token()
    load_backbone(backbone, weights)
    assert isinstance(backbone, ViT)
    return backbone.eval()
