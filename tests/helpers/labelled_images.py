"""A folder of labelled images that differ in colour alone, and one tiny network of each kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import ClassAttentionPool

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
NETWORKS = ("vit", "vit+pool", "swin", "resnet")


def coloured_folder(root: Path, *, train: int = 8, test: int = 4) -> Path:
    """Write train/ and val/ with a number of images per class, of 20 x 24 noisy pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 20, (20, 24, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                    folder / f"{name}_{i}.png"
                )
    return root


def tiny_encoder(kind: str) -> BranchEncoder:
    """Return a network in evaluation mode."""
    torch.manual_seed(3)
    pool = None
    if kind == "swin":
        backbone = build_backbone(SwinConfig(embed_dim=8, depths=(1, 1), first_heads=1, window=4))
    elif kind == "resnet":
        backbone = build_backbone(ResNetConfig(depths=(1, 1), width=4))
    else:
        plain = kind == "vit"
        shape = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=8, grid=2, class_token=plain, final_norm=plain)
        backbone = build_backbone(shape)
        pool = None if plain else ClassAttentionPool(16, 2)
    return BranchEncoder(backbone, pool).eval()
