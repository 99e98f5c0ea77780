"""The fault matrix: whatever happens to a command, it ends, nothing is lost, and calling it again gives the same.

Each cell runs a command that meets a fault in the middle of its work, and then the command that goes on. The metrics,
weights and files are those of a run that met no fault, to the last bit. `SELFPATCH_FAULTS=all` runs every cell, the
fault at several moments; otherwise a few cells are run, each command and each fault among them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageOps

from tests.evaluation.depth.conftest import write_depth
from tests.helpers.block_images import write_blocks
from tests.helpers.command_line import TINY, environment
from tests.helpers.detect_data import write_split
from tests.helpers.fault_injection import Fault, run_with
from tests.helpers.labelled_images import coloured_folder
from tests.helpers.tiny_study import PLAN, write_study, write_weights
from tests.helpers.warm_fork import warm_server

pytestmark = pytest.mark.slow

ALL = os.environ.get("SELFPATCH_FAULTS") == "all"
MOMENTS = (0.2, 0.4, 0.6, 0.8) if ALL else (0.6,)
"""When a fault happens, in fractions of a command's writing operations."""
SECONDS = 120
"""Time in which a command ends, on a machine that does other work."""


@dataclass(frozen=True)
class Job:
    """A command; OUT, DATA and WEIGHTS stand for paths."""

    words: str
    data: str
    """Folder of the data, below that of all data."""
    image: str
    """An image that it reads early, below the data."""
    trains: bool = True
    resume: bool = False
    """It is continued by `resume`, not by the same command."""
    full: tuple[str, ...] = (r"fitting\.pt", r"result\.json|\.png|predictions")
    """Files that find the disk full, one kind at a time."""


DECODER = "--preset small --crop 32 --batch-size 4 --steps 4 --drop-path 0.2 --precision float32 --max-pictures 1"
SEGMENT = "evaluate segment --weights WEIGHTS --data DATA --out OUT --device cpu --method"
EPOCHS = "--epochs 2 --batch-size 4 --resize 16 --crop 16 --workers 1"
TRAINED = "--weights WEIGHTS --data DATA --out OUT --device cpu"
JOBS = {
    "pretrain": Job(
        f"pretrain {' '.join(TINY)} --data DATA --out OUT --epochs 2 --checkpoint.every-steps 1 --checkpoint.keep 2 "
        "--loader.workers 1 --backbone.drop-path 0.2 --watch.picture-images 1",
        "photos", "001.png", resume=True, full=(r"metrics\.jsonl", r"step-\d+\.pt", r"report\.html|backbone\."),
    ),
    "linear": Job(f"evaluate linear {TRAINED} {EPOCHS} --lrs 0.1", "coloured", "train/red/red_1.png"),
    "finetune": Job(
        f"evaluate finetune {TRAINED} {EPOCHS} --warmup-epochs 1 --drop-path 0.2 --mixup 0.8",
        "coloured", "train/red/red_1.png",
    ),
    "segment linear": Job(
        f"{SEGMENT} linear --preset full --mask-side 16 --crop 32 --batch-size 4 --epochs None --steps 4 --test whole",
        "blocks", "images/train/1.png",
    ),
    "segment fpn": Job(f"{SEGMENT} fpn {DECODER}", "blocks", "images/train/1.png"),
    "segment upernet": Job(f"{SEGMENT} upernet {DECODER}", "blocks", "images/train/1.png"),
    "depth": Job(
        f"evaluate depth {TRAINED} --region whole --crop 32 48 --bins 16 --batch-size 4 --steps 4 --workers 1",
        "depth", "train/rgb/1.png",
    ),
    "detect": Job(
        f"evaluate detect {TRAINED} --preset small --train-split train --test-split val --width 8 --proposals 30 "
        "--rois 16 --short-sides 32 --long-side 64 --batch-size 2 --epochs 1 --anchor-scale 4 --lr 1e-4",
        "shapes", "train/000000000001.png",
    ),
    "suite": Job(
        "evaluate all --suite DATA/suite.yaml --weights WEIGHTS --out OUT --device cpu",
        ".", "coloured/train/red/red_1.png", full=(r"fitting\.pt", r"result\.json", r"report\."),
    ),
    "study": Job(
        "study DATA/tiny.yaml --data DATA --out OUT --device cpu --processes 1", "study", "photos/001.png",
        full=(r"metrics\.jsonl", r"step-\d+\.pt", r"result\.json", r"report\."),
    ),
    "export": Job(
        "export --weights WEIGHTS --to timm --out OUT", "photos", "001.png", False, full=(r"safetensors", r"config")
    ),
    "show": Job(
        "show --weights WEIGHTS --out OUT --device cpu DATA/001.png DATA/002.png",
        "photos", "001.png", False, full=(r"\.png",),
    ),
}  # fmt: skip
EVENTS = (
    "kill", "terminate", "interrupt", "kill worker", "read-only", "clock back", "changed image", "truncated checkpoint"
)  # fmt: skip
WHILE_TRAINING = ("kill worker", "changed image", "truncated checkpoint")
CODES = {
    "kill": {-9},
    "terminate": {-15, 143, 130},
    "interrupt": {130},
    "kill worker": {0, 1, 2},
    "full": {1, 2},
    "read-only": {1, 2},
}
"""Exit codes with each fault; 1 is that of a suite or a study in which something failed."""


def cells() -> Iterator[Any]:
    """Yield (job, fault): all, or for each job in turn the next fault."""
    for i, (name, job) in enumerate(JOBS.items()):
        events = [fault for fault in EVENTS if job.trains or fault not in WHILE_TRAINING]
        full = [f"full: {files}" for files in job.full]
        for fault in (*events, *full) if ALL else (events[i % len(events)], full[i % len(full)]):
            yield pytest.param(name, fault, id=f"{name}-{fault}")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data, weights, and results of runs without a fault."""
    root = tmp_path_factory.mktemp("world")
    write_weights(root, patch_size=4)
    coloured_folder(root / "coloured", train=4, test=2)
    write_blocks(root / "blocks", train=5, val=2)
    write_depth(root / "depth", train=5, test=2)
    write_split(write_split(root / "shapes", "train", images=5), "val", images=2, seed=1)
    (root / "study").mkdir()
    settings = PLAN["settings"] | {"epochs": 1, "checkpoint": {"every_steps": 1}}
    small = {"arms": {"DINO": {"objective": "none"}}, "baselines": ["baseline:mean-colour:4"], "seeds": [0]}
    write_study(root / "study", settings=settings, over_time=None, pictures=None, **small)
    shutil.copytree(root / "study" / "photos", root / "photos")
    fpn = {"data": str(root / "blocks"), "method": "fpn", "preset": "small", "crop": 32, "batch_size": 4, "steps": 2}
    knn = {"data": str(root / "coloured"), "resize": 16, "crop": 16, "ks": [1]}
    (root / "suite.yaml").write_text(yaml.safe_dump([{"knn": knn}, {"segment": fpn | {"precision": "float32"}}]))
    return root


class Call:
    """A job with its own output folder."""

    def __init__(self, job: Job, world: Path, out: Path) -> None:
        self.job, self.out, self._world = job, out, world
        self.data = world / job.data

    def run(self, kind: str = "none", moment: int = 0, files: str = "") -> subprocess.CompletedProcess[str]:
        words = self.job.words
        if self.job.resume and (self.out / "config.yaml").exists():
            words = "resume OUT"
        paths = {"OUT": self.out, "DATA": self.data, "WEIGHTS": self._world / "weights.safetensors"}
        words = re.sub("OUT|DATA|WEIGHTS", lambda match: str(paths[match[0]]), words)
        folder = self.out.parent  # some commands write next to the output folder first
        fault = Fault(str(folder), str(folder / "operations.txt"), kind, moment, files)
        cache = folder / "cache"
        return warm_server().run(
            run_with, fault, words.split(), environment=environment(cache), cwd=folder, timeout=SECONDS
        )

    def operations(self) -> list[str]:
        return (self.out.parent / "operations.txt").read_text().splitlines()


@pytest.fixture(scope="session")
def undisturbed(world: Path) -> Any:
    """Return a job's operations and its results without a fault."""
    known: dict[str, tuple[list[str], dict[str, Any]]] = {}

    def of(name: str) -> tuple[list[str], dict[str, Any]]:
        if name not in known:
            call = Call(JOBS[name], world, world / "undisturbed" / name.replace(" ", "-") / "out")
            call.out.parent.mkdir(parents=True)
            done = call.run()
            assert done.returncode == 0, done.stderr
            known[name] = call.operations(), results(call.out)
        return known[name]

    return of


def results(out: Path) -> dict[str, Any]:
    """Return losses, metrics, weights, and the bytes of what else is to be the same, by file."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if k in ("step", "loss", "view_matching")} for row in rows]
        elif path.name == "result.json":
            found[name] = json.loads(path.read_text())["metrics"]
        elif path.suffix == ".pt":
            found[name] = digest(torch.load(path, weights_only=True))
        elif path.suffix in (".safetensors", ".png"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("report.html", "report.md", "config.json", "README.txt"):
            found[name] = "exists"
    return found


def digest(state: Any) -> str:
    """Return a hash of all tensors and numbers of a checkpoint."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.flatten().clone().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, inner in value.items():
                found.update(str(key).encode())
                add(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                add(inner)
        else:
            found.update(str(value).encode())

    add(state)
    return found.hexdigest()


@pytest.mark.parametrize(("name", "fault"), list(cells()))
def test_a_fault_loses_nothing(name: str, fault: str, world: Path, undisturbed: Any, tmp_path: Path) -> None:
    operations, expected = undisturbed(name)
    killed = False
    for i, fraction in enumerate(MOMENTS):
        (tmp_path / str(i)).mkdir()
        call = Call(JOBS[name], world, tmp_path / str(i) / "out")
        moment = int(fraction * len(operations))
        if fault.startswith("full: "):
            files = fault.removeprefix("full: ")
            count = sum(line.startswith("open") and re.search(files, line) is not None for line in operations)
            assert count or name == "study", operations
            done = call.run("full", int(fraction * count), files)
            check(done, "full")
        elif fault in CODES:
            check(call.run(fault, moment), fault)
            killed |= any(line.startswith("killed") for line in call.operations())
        else:
            call.run("kill", moment)
            between(fault, call)
        last = call.run("clock back" if fault == "clock back" else "none")
        assert last.returncode == 0, last.stderr
        found = results(call.out)
        assert {name for name in expected if found.get(name) != expected[name]} == set(), last.stderr
        assert found.keys() - expected.keys() == set()
    if fault == "kill worker" and not killed:
        pytest.skip("no process of the command was there to be killed")


def check(done: subprocess.CompletedProcess[str], fault: str) -> None:
    assert done.returncode in CODES[fault], (done.returncode, done.stderr)
    assert not re.search("Traceback|unexpected", done.stderr), done.stderr


def between(fault: str, call: Call) -> None:
    """Do what happens between a kill and the command that goes on."""
    if fault == "truncated checkpoint":
        exported = "exported/backbone.safetensors"  # of a run that has ended, whose checkpoints nothing reads
        unfinished = [path for path in call.out.rglob("step-*.pt") if not (path.parents[1] / exported).exists()]
        states = sorted([*unfinished, *call.out.rglob("fitting.pt")], key=lambda p: p.stat().st_mtime_ns)
        for path in states[-1:]:
            os.truncate(path, path.stat().st_size // 2)
    if fault == "changed image":
        image = call.data / call.job.image
        before, times = image.read_bytes(), image.stat()
        ImageOps.invert(Image.open(image).convert("RGB")).save(image)
        try:
            done = call.run()
        finally:
            image.write_bytes(before)
            os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert done.returncode in (0, 1, 2), done.stderr
        assert not re.search("Traceback|unexpected", done.stderr), done.stderr
        if done.returncode == 0:
            shutil.rmtree(call.out)
