"""Compare selfpatch with other packages: `python -m benchmarks.peers`.

    python -m venv VENVS/lightly && VENVS/lightly/bin/pip install -c constraints.txt lightly
    python -m benchmarks.peers --venvs VENVS --peers lightly [--data IMAGES] [--clock cpu]

Both train a ViT-S/16 with a head of 65,536 prototypes on 2 crops of 224 and 8 of 96 pixels, with AdamW and clipping.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.peers.config import MODULES, OURS, WITHOUT_LOADER, Peer, PeersConfig
from benchmarks.peers.pairs import Contestant, race
from benchmarks.peers.task import Task
from benchmarks.photographs import write_photographs
from benchmarks.report import Report, describe_machine
from benchmarks.timing import Timing
from selfpatch.core.console import console
from selfpatch.core.distributed import start
from selfpatch.core.machine import emulates

ROOT = Path(__file__).parents[2]
NUM_PHOTOGRAPHS = 200
LOADER_STEPS = 10
"""Batches of the loader alone that are counted as a step of a training."""


def python_of(package: str, venvs: str | None) -> str:
    """Return the interpreter of a package's environment.

    Raises:
        ValueError: there is none, or the package is not installed in it.
    """
    python = sys.executable if package == OURS or venvs is None else str(Path(venvs, package, "bin", "python"))
    if not Path(python).is_file():
        raise ValueError(f"there is no environment {Path(venvs or '', package)}; make it with `python -m venv`")
    look = f"import importlib.metadata as m; m.version({package!r})"
    if package != OURS and subprocess.run([python, "-c", look], capture_output=True).returncode:
        raise ValueError(
            f"{package} is not installed in the environment of {python}; run `{python} -m pip install {package}`, "
            "or leave it out with --peers"
        )
    return python


def cases(config: PeersConfig, device: torch.device) -> Iterator[tuple[Peer, str, str]]:
    """Yield the peers, parts and precisions to be timed; the loader has no precision."""
    for peer in config.peers:
        if "loader" in config.parts and peer not in WITHOUT_LOADER:
            yield peer, "loader", "float32"
        for precision in config.precisions if "training" in config.parts else ():
            if not emulates(getattr(torch, precision), device):
                yield peer, "training", precision


def compare(config: PeersConfig, peer: Peer, part: str, precision: str, data: str, device: torch.device) -> Any:
    """Return the timing of one case, and the versions in both processes.

    Raises:
        ValueError: a package is not installed, or its process ends or takes too long.
    """
    name = f"{part} of DINO, {config.model}, batch {config.batch_size}"
    name += f", {precision}, {config.workers} workers" if part == "training" else ", one process"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        contestants = {}
        for package in (peer, OURS):
            place = Path(folder, package)
            place.mkdir()
            task = Task(
                part=part,
                data=data,
                model=config.model,
                batch_size=config.batch_size,
                workers=config.workers if part == "training" else 0,
                precision=precision,
                num_prototypes=config.num_prototypes,
                device=device.type,
                folder=str(place),
                log=str(place / "log.jsonl"),
            )
            command = [python_of(package, config.venvs), "-m", f"benchmarks.peers.{MODULES[package]}"]
            contestants[package] = stack.enter_context(Contestant(package, command, task, config.patience))
        steps = config.steps * (LOADER_STEPS if part == "loader" else 1)
        result = race(contestants, rounds=config.rounds, steps=steps, clock=config.clock)
    versions = {
        package: {**record.versions, "threads": record.threads} for package, record in result["records"].items()
    }
    return Timing(f"{name}, {config.clock} time", result["seconds"], config.batch_size, "images"), versions


def main() -> None:
    """Run the comparison with the options of the command line."""
    config = tyro.cli(PeersConfig, description=__doc__)
    try:
        run(config)
    except ValueError as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(2)


def run(config: PeersConfig) -> Report:
    """Run the comparison; each table is printed as soon as it is known.

    Raises:
        ValueError: as `compare` and `start` do.
    """
    device = start(config.device)
    for peer in config.peers:
        python_of(peer, config.venvs)  # before the first is timed
    machine = describe_machine(device)
    timings = []
    with tempfile.TemporaryDirectory() as folder:
        data = config.data
        if data is None:
            write_photographs(Path(folder, "photographs", "all"), NUM_PHOTOGRAPHS)
            data = str(Path(folder, "photographs"))
        for peer, part, precision in cases(config, device):
            timing, versions = compare(config, peer, part, precision, data, device)
            timings.append(timing)
            machine[f"{timing.name}: {peer}"] = versions
            console.print(*Report([timing], {}, machine).tables(), versions)
    report = Report(timings, {}, machine)
    if config.out is not None:
        report.save(Path(config.out))
    return report


if __name__ == "__main__":
    main()
