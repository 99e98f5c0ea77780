"""`selfpatch bench`: time the fast paths against their plain references."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Gt
from pydantic import PositiveInt

from selfpatch.cli.parsing import read_options
from selfpatch.config.schema import settings


@settings
class BenchOptions:
    """Time every fast path against its plain reference: images a second, memory, and the share of the machine's peak.

    Needs a source checkout, which holds the package `benchmarks`.
    """

    parts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Benchmarks to run, some of loader, step, ops, davis and scaling; if none are given, all of them, which takes some
    ten minutes on two cores."""
    data: str | None = None
    """Folder of photographs for the loader; if not given, the built-in samples, which are small."""
    model: str = "vit_small"
    """Model of the step."""
    batch_size: PositiveInt = 4
    """Number of images in the step."""
    seconds: Annotated[float, Gt(0)] = 4.0
    """Approximate time for each case in seconds; each path is timed at least three times."""
    device: str = "auto"
    """Device to time: `auto` (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps."""
    out: str | None = None
    """JSON file for all times, with the machine and the versions."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(BenchOptions, "bench", arguments)
    _find_benchmarks()
    from rich.console import Console

    from benchmarks.running import PARTS, run_benchmarks
    from selfpatch.core.distributed import start

    run_benchmarks(
        options.parts or PARTS,
        device=start(options.device),
        data=None if options.data is None else Path(options.data),
        model=options.model,
        batch_size=options.batch_size,
        seconds=options.seconds,
        out=None if options.out is None else Path(options.out),
        tell=Console().print,
    )
    return 0


def _find_benchmarks() -> None:
    """Make the package `benchmarks` importable: it is no part of the wheel, but stands beside pyproject.toml.

    Raises:
        ValueError: this is no source checkout.
    """
    if importlib.util.find_spec("benchmarks") is not None:
        return
    checkout = Path(__file__).parents[3]
    if not (checkout / "benchmarks" / "__init__.py").is_file():
        raise ValueError(
            "the benchmarks are not installed with selfpatch; clone its repository and run `pip install -e .` there"
        )
    sys.path.append(str(checkout))
