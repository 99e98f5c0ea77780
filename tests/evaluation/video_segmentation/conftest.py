"""Clips of drawn squares, in the layout of DAVIS-2017 and in that of YouTube-VOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.video_segmentation.clip import write_mask

Tree = Callable[..., Path]
COLOURS = np.array([[30, 30, 30], [220, 40, 40], [40, 60, 220]], np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Draws a clip `toy`: two squares of 32 pixels, one red (1), one blue (2), 16 pixels further in each frame."""

    def draw(frames: int = 6, size: tuple[int, int] = (128, 192), colours: np.ndarray = COLOURS) -> Path:
        root = tmp_path / "davis"
        (root / "ImageSets" / "2017").mkdir(parents=True)
        (root / "ImageSets" / "2017" / "val.txt").write_text("toy\n")
        (root / "JPEGImages" / "480p" / "toy").mkdir(parents=True)
        for i in range(frames):
            mask = np.zeros(size, np.uint8)
            mask[16:48, 16 * i : 16 * i + 32] = 1
            mask[80:112, 160 - 16 * i : 192 - 16 * i] = 2
            Image.fromarray(colours[mask]).save(root / f"JPEGImages/480p/toy/{i:05d}.jpg", quality=95, subsampling=0)
            write_mask(root / f"Annotations/480p/toy/{i:05d}.png", mask)
        return root

    return draw


def write_videos(root: Path, *, truth: bool = True, meta: bool = True, frames: int = 6) -> Path:
    """Write valid/ and train/ of YouTube-VOS: `toy` with a red object 1 from its second frame and a blue object 4 from
    its fourth, and `other` with object 2 from its first; squares of 16 pixels, 8 further in each frame.

    Without `truth`, masks hold nothing but the objects that start in them; without `meta`, there is no meta.json.
    """
    names = [f"{5 * i:05d}" for i in range(frames)]
    videos = {"toy": {1: (1, "dog", 8), 4: (3, "ape", 40)}, "other": {2: (0, "dog", 24)}}
    for video, objects in videos.items():
        for i, name in enumerate(names):
            mask, given = np.zeros((64, 96), np.uint8), np.zeros((64, 96), np.uint8)
            for value, (start, _, top) in objects.items():
                square = slice(top, top + 16), slice(8 * (i % 8) + 8, 8 * (i % 8) + 24)
                if i >= start:
                    mask[square] = value
                if i == start:
                    given[square] = value
            picture = root / "valid" / "JPEGImages" / video / f"{name}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(COLOURS[mask // 2 + mask % 2]).save(picture, quality=95, subsampling=0)
            if truth or given.any():
                write_mask(root / "valid" / "Annotations" / video / f"{name}.png", mask if truth else given)
    if meta:
        listed = {
            video: {
                "objects": {str(v): {"category": c, "frames": names[start:]} for v, (start, c, _) in objects.items()}
            }
            for video, objects in videos.items()
        }
        (root / "valid" / "meta.json").write_text(json.dumps({"videos": listed}))
        (root / "train").mkdir()
        seen = {"videos": {"a": {"objects": {"1": {"category": "dog", "frames": ["00000"]}}}}}
        (root / "train" / "meta.json").write_text(json.dumps(seen))
    return root
