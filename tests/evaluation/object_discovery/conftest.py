"""Images with one bright object, in the layout of VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.evaluation.encoders import MeanColour
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.encoder import BranchEncoder

Objects = list[tuple[tuple[int, int, int, int], str]]


class ColourAgainstGround(MeanColour):
    """Mean colour about grey, whose sign tells the object from the ground."""

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(images - 0.5)


def tiny_vit(*, class_token: bool = True, registers: int = 0) -> BranchEncoder:
    torch.manual_seed(0)
    shape = ViTConfig(
        embed_dim=16, depth=3, num_heads=2, patch_size=8, grid=4, class_token=class_token, num_registers=registers
    )
    return BranchEncoder(build_backbone(shape), None).eval()


def write_voc(root: Path, images: dict[str, tuple[np.ndarray, Objects]], split: str = "trainval") -> Path:
    """Objects are ((xmin, ymin, xmax, ymax) as VOC counts, "" or "difficult" or "truncated")."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, (pixels, objects) in images.items():
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
        parts = ["<annotation>"]
        for box, mark in objects:
            sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            marks = "".join(f"<{m}>{int(mark == m)}</{m}>" for m in ("difficult", "truncated"))
            parts.append(f"<object><name>cat</name>{marks}<bndbox>{sides}</bndbox></object>")
        (root / "Annotations" / f"{name}.xml").write_text("".join([*parts, "</annotation>"]))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images))
    return root


def square(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (80, 101)) -> np.ndarray:
    """A bright block on dark ground."""
    pixels = np.full((*size, 3), (20, 30, 60), np.uint8)
    pixels[top:bottom, left:right] = (250, 220, 200)
    return pixels


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """One object that is met, one box elsewhere, one image without a box, and one where only a second box is met."""
    pixels = square(24, 16, 64, 48)
    return write_voc(
        tmp_path / "VOC2007",
        {
            "met": (pixels, [((25, 17, 64, 48), "")]),
            "missed": (pixels, [((1, 1, 20, 20), "difficult")]),
            "none": (pixels, []),
            "second": (pixels, [((1, 1, 101, 80), ""), ((25, 17, 64, 48), "truncated")]),
        },
    )
