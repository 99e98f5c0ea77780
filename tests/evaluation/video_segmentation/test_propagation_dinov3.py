"""Masks of DINOv3's presets against its protocol as plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from selfpatch.evaluation.encoders import RawPatch
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from tests.helpers.command_line import write_davis

PATCH, RADIUS, CONTEXT, TOPK = 8, 2, 2, 3
SMALL: dict[str, Any] = {"resolution": 52, "radius": RADIUS, "context_frames": CONTEXT, "topk": TOPK}


def plain_masks(root: Path, size: tuple[int, int], upsampling: str) -> list[np.ndarray]:
    """Follow the objects of a clip: all pairs of patches, one after the other."""
    frames = [Image.open(path).convert("RGB") for path in sorted((root / "JPEGImages/480p/toy").iterdir())]
    first = np.asarray(Image.open(root / "Annotations/480p/toy/00000.png"))
    rows, columns = size[0] // PATCH, size[1] // PATCH
    features = []
    for frame in frames:
        pixels = np.asarray(frame.resize((size[1], size[0]), Image.Resampling.BICUBIC)) / np.float32(255)
        patches = pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(rows, columns, -1)
        features.append(patches / np.linalg.norm(patches, axis=-1, keepdims=True))
    centre = (np.arange(rows) + 0.5) * first.shape[0] / rows, (np.arange(columns) + 0.5) * first.shape[1] / columns
    labels = [np.eye(first.max() + 1)[first[centre[0].astype(int)][:, centre[1].astype(int)]]]
    masks = [first]
    for t in range(1, len(frames)):
        context = [0, *range(max(1, t - CONTEXT), t)]
        soft = np.zeros_like(labels[0])
        for i, j in np.ndindex(rows, columns):
            near = [
                (features[t][i, j] @ features[s][k, m], labels[s][k, m])
                for s in context
                for k, m in np.ndindex(rows, columns)
                if math.hypot(i - k, j - m) <= RADIUS
            ]
            kept = sorted(near, key=lambda pair: -pair[0])[:TOPK]
            weights = np.exp([cosine / 0.2 for cosine, _ in kept])
            soft[i, j] = weights / weights.sum() @ np.stack([label for _, label in kept])
        labels.append(soft)
        enlarged = F.interpolate(torch.from_numpy(soft).movedim(-1, 0)[None], first.shape, mode=upsampling)[0].numpy()
        low, high = enlarged.min((1, 2), keepdims=True), enlarged.max((1, 2), keepdims=True)
        masks.append(((enlarged - low) / (high - low)).argmax(0))
    return masks


@pytest.mark.parametrize(
    ("preset", "size", "upsampling", "mistakes"),
    [
        ("dinov3", (48, 72), "bilinear", {"window": "square", "upsample_to": "input", "resampling": "opencv"}),
        (
            "dinov3_notebook",
            (56, 80),
            "nearest",
            {"upsampling": "bilinear", "rounding": "nearest", "temperature": 0.002},
        ),
    ],
)
def test_masks_equal_plain_loops(
    tmp_path: Path, preset: str, size: tuple[int, int], upsampling: str, mistakes: dict[str, Any]
) -> None:
    """Every mask is equal; each planted mistake changes one."""
    root = write_davis(tmp_path / "davis", ("toy",))

    def masks(**settings: Any) -> list[np.ndarray]:
        config = DAVISConfig.from_settings({"preset": preset, **SMALL, **settings})
        evaluate(RawPatch(PATCH), root, config, Output(tmp_path / "out"))
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out" / "results" / "toy").iterdir())]

    expected = plain_masks(root, size, upsampling)
    assert all(map(np.array_equal, masks(), expected))
    for name, value in mistakes.items():
        assert not all(map(np.array_equal, masks(**{name: value}), expected)), name


def test_presets_hold_what_is_known() -> None:
    dino, paper, notebook = (DAVISConfig.from_settings({"preset": p}) for p in ("dino", "dinov3", "dinov3_notebook"))
    assert dino == DAVISConfig()
    assert (dino.resolution, dino.temperature, dino.window, dino.rounding) == (480, 0.1, "square", "released")
    for preset in (paper, notebook):
        assert (preset.resolution, preset.radius, preset.window, preset.topk) == (960, 12, "circle", 5)
        assert (preset.context_frames, preset.temperature, preset.resampling) == (7, 0.2, "bicubic")
    assert (paper.rounding, paper.upsampling, notebook.rounding, notebook.upsampling) == (
        "nearest", "bilinear", "up", "nearest",
    )  # fmt: skip
