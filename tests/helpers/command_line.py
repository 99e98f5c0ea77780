"""Run the program as a user does, on small data that take seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

TINY = (
    "--recipe small-cpu --model vit_tiny --patch-size 4 --backbone.embed-dim 24 --backbone.depth 2 "
    "--backbone.num-heads 3 --crops.global-size 32 --crops.local-size 16 --dino.num-prototypes 64 --dino.hidden-dim 32 "
    "--dino.bottleneck-dim 16 --selfpatch.num-prototypes 32 --selfpatch.hidden-dim 32 --selfpatch.bottleneck-dim 16 "
    "--batch-size 4 --optimizer.base-lr 0.05 --watch.evaluate-every 0 --watch.picture-images 2 --watch.log-every 1 "
    "--loader.held-out 2 --device cpu --precision fp32"
).split()
"""Options of a run whose every part is small."""


def write_photos(folder: Path, count: int, size: int = 48) -> Path:
    """Write smooth random images, so that their crops differ and neighbouring patches are alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.png")
    return folder


def write_davis(root: Path, sequences: tuple[str, ...] = ("first", "second"), frames: int = 4) -> Path:
    """Write a DAVIS-2017 tree whose sequences have two objects, one of which moves."""
    rng = np.random.default_rng(0)
    for name in sequences:
        images, masks = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        for folder in (images, masks):
            folder.mkdir(parents=True)
        for frame in range(frames):
            mask = np.zeros((48, 64), np.uint8)
            mask[8:24, 8 + frame : 24 + frame], mask[28:44, 36:52] = 1, 2
            picture = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8) + 90 * mask[..., None]
            Image.fromarray(picture).save(images / f"{frame:05d}.jpg")
            Image.fromarray(mask).save(masks / f"{frame:05d}.png")
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(sequences))
    return root


def command(*arguments: str, processes: int = 1) -> list[str]:
    """Return the command line of a call, under torchrun if there are several processes."""
    if processes == 1:
        return [sys.executable, "-m", "selfpatch", *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, "-m", "selfpatch", *arguments]


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a call, whose caches are in a folder of the test."""
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def run(cache: Path, *arguments: str, processes: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, or several."""
    return subprocess.run(
        command(*arguments, processes=processes),
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def final_state(out: Path) -> dict[str, Any]:
    """Return everything that the last checkpoint of a run holds."""
    newest = max((out / "checkpoints").glob("step-*.pt"))
    return torch.load(newest, weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the paths at which two nested states differ in any bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [where]
