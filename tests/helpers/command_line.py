"""Run the program as a user does, on small data that take seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from tests.helpers.warm_fork import WarmProcess, warm_server

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
    """Return the words by which a user calls the program, under torchrun if there are several processes."""
    if processes == 1:
        return [sys.executable, "-m", "selfpatch", *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, "-m", "selfpatch", *arguments]


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a call, whose caches are in a folder of the test."""
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def start(cache: Path, *arguments: str, processes: int = 1, stderr: IO[Any] | None = None) -> WarmProcess:
    """Start the program in a process that is forked from a warm one; output goes to /dev/null."""
    words = ("torchrun", str(processes), *arguments) if processes > 1 else arguments
    return warm_server().start(program, words, environment=environment(cache), stderr=stderr)


def run(cache: Path, *arguments: str, processes: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the program to its end as `start` does."""
    words = ("torchrun", str(processes), *arguments) if processes > 1 else arguments
    return warm_server().run(program, words, environment=environment(cache), timeout=timeout)


def run_cold(cache: Path, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does, which takes seconds more than `run`."""
    words = command(*arguments, processes=processes)
    return subprocess.run(words, env=environment(cache), capture_output=True, text=True, timeout=300)


def program(arguments: Sequence[str]) -> int:
    """Run the command line in this process; `torchrun N ...` runs N processes that train together."""
    from selfpatch.cli.main import main

    if arguments[0] != "torchrun":
        sys.argv = ["selfpatch", *arguments]
        return main()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world_size, ranks = int(arguments[1]), list[int]()
    for rank in range(world_size):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            os.environ |= {name: str(value) for name, value in {**numbers, "MASTER_PORT": port}.items()}
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            return program(arguments[2:])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _send(ranks, number))
    codes = [0]
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        codes.append(abs(os.waitstatus_to_exitcode(status)))
        if codes[-1]:
            _send(ranks, signal.SIGTERM)
    return max(codes)


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


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
