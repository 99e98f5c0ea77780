"""Replay of position embeddings: interpolated to other grids as released, and MoCo-v3's fixed sines and cosines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.backbones.positions import add_positions
from selfpatch.models.backbones.vit import ViT
from tests.parity.check import Check, compare

ABSOLUTE = 1e-5
SMALL_GRID = 5
"""Number of patches below which sums of squares have twice the tolerance."""


def replay_position_embeddings(bundle: Path) -> Iterator[Check]:
    """Replay the interpolation of every repository's variants."""
    for repository, variants in json.loads((bundle / "expected.json").read_text()).items():
        for variant, expected in variants.items():
            if isinstance(expected, dict):  # the rest says which repositories agree bit for bit
                yield from _interpolated(f"{repository}, {variant}", variant, expected)


def _interpolated(title: str, variant: str, expected: dict[str, Any]) -> Iterator[Check]:
    patch, height, width = (int(word) for word in variant.replace(",", "").split() if word.isdigit())
    prefix, (grid, _), dim = expected["prefix_tokens"], expected["stored_grid"], expected["width"]
    config = ViTConfig(
        embed_dim=dim, depth=1, num_heads=1, patch_size=patch, grid=grid, class_token=prefix > 0, final_norm=False
    )
    backbone = build_backbone(config)
    assert isinstance(backbone, ViT)
    stored = np.random.RandomState(expected["random_state_seed"]).standard_normal((prefix + grid * grid, dim))
    with torch.no_grad():
        assert backbone.trunk.pos_embed is not None
        backbone.trunk.pos_embed.copy_(torch.from_numpy(stored.astype(np.float32)))
        if backbone.trunk.cls_token is not None:
            backbone.trunk.cls_token.zero_()
        embedded = torch.zeros(1, height // patch, width // patch, dim)
        positions = add_positions(backbone.trunk, embedded, config.position_embedding)[0]
    yield from _rows(title, positions, prefix, expected)


def _rows(title: str, positions: Tensor, prefix: int, expected: dict[str, Any]) -> Iterator[Check]:
    yield compare(f"{title}: shape", torch.tensor(positions.shape), torch.tensor(expected["output_shape"]), 0)
    if prefix:
        yield _absolute(f"{title}: prefix", positions[:prefix], expected["prefix"])
    patches = positions[prefix:]
    rows = [int(index) for index in expected["rows"]]
    yield _absolute(f"{title}: rows", patches[rows], list(expected["rows"].values()))
    count, double = len(patches), patches.double()
    weights = torch.arange(1, count + 1, dtype=torch.double)[:, None] / count
    sums = {"sum": double.sum(0), "position_weighted_sum": (weights * double).sum(0)}
    for name, got in sums.items():
        # An error of 1e-5 in each row; sums cancel and cannot be compared with themselves.
        yield _absolute(f"{title}: {name}", got / count, torch.tensor(expected[name]).double() / count)
    tolerance = ABSOLUTE * (2 if count < SMALL_GRID else 1)
    squares = torch.tensor(expected["sum_of_squares"]).double()
    yield compare(f"{title}: sum_of_squares", double.square().sum(0), squares, tolerance)


def _absolute(name: str, got: Tensor, expected: Any) -> Check:
    return Check(name, float((got.double() - torch.as_tensor(expected).double()).abs().max()), ABSOLUTE)


def replay_fixed_positions(bundle: Path) -> Iterator[Check]:
    """Replay MoCo-v3's embedding; its recorded rows hold every 24th entry."""
    expected = json.loads((bundle / "moco_v3_positions.json").read_text())
    tokens, dim = expected["shape"]
    grid = round((tokens - 1) ** 0.5)
    backbone = build_backbone(ViTConfig(embed_dim=dim, depth=1, num_heads=1, patch_size=16, grid=grid))
    assert isinstance(backbone, ViT)
    assert backbone.trunk.pos_embed is not None
    backbone.fix_positions()
    positions = backbone.trunk.pos_embed[0].double()
    yield compare("MoCo-v3 shape", torch.tensor(positions.shape), torch.tensor(expected["shape"]), 0)
    yield compare("MoCo-v3 sum", positions.sum(), expected["sum"], 1e-6)
    yield compare("MoCo-v3 sum of magnitudes", positions.abs().sum(), expected["sum_abs"], 1e-6)
    for name, row in expected.items():
        if name.startswith("row_"):
            got = positions[int(name.removeprefix("row_")), :: dim // len(row)]
            yield compare(f"MoCo-v3 {name}", got, torch.tensor(row).double(), 1e-6)
