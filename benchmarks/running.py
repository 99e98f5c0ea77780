"""Runs what is asked for of the benchmarks, and tells of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.table import Table

from benchmarks import davis, device_loader, loader, ops, scaling, step
from benchmarks.ceiling import matrix_ceiling
from benchmarks.report import Report, machine_facts
from benchmarks.timing import Case, Timing, time_case

PARTS = ("loader", "step", "ops", "davis", "scaling")
Tell = Callable[[str | Table], None]


def run_benchmarks(
    parts: Sequence[str],
    *,
    device: torch.device,
    data: Path | None = None,
    model: str = "vit_small",
    batch_size: int = 4,
    seconds: float = 4.0,
    out: Path | None = None,
    tell: Tell,
) -> Report:
    """Times what is asked for and tells of each table when it is known.

    Args:
        parts: of `PARTS`.
        data: folder of photographs for the loader; None: the built-in samples.
        model, batch_size: of the step.
        seconds: about how long each case is timed; a step at least three times each way.
        out: JSON file.

    Raises:
        ValueError: a part is unknown, or the folder holds no images.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"there is no benchmark {unknown[0]!r}; use some of: {', '.join(PARTS)}")
    ceilings = {name: matrix_ceiling(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    machine = machine_facts(device)
    tell(", ".join(f"{name} {value}" for name, value in machine.items()))
    tell("matrix products: " + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in ceilings.items()))
    timings: list[Timing] = []
    costs: list[scaling.Cost] = []
    for part in parts:
        if part == "scaling":
            costs = list(scaling.costs(device))
            tell(scaling.table(costs))
        for timing in _timings(part, device, data, model, batch_size, seconds):
            timings.append(timing)
            tell(Report([timing], ceilings, machine).tables()[0])
    report = Report(timings, ceilings, machine, costs)
    if out is not None:
        report.save(out)
    return report


def _timings(
    part: str, device: torch.device, data: Path | None, model: str, batch_size: int, seconds: float
) -> Iterator[Timing]:
    if part == "step":
        yield step.time_steps(step.published_step(model, batch_size), device, seconds=seconds)
    for case in _cases(part, device, data):
        yield time_case(case, seconds=seconds)


def _cases(part: str, device: torch.device, data: Path | None) -> Iterator[Case]:
    if part == "loader":
        yield from loader.cases(data)
        yield from device_loader.cases(device, data)
    elif part == "ops":
        yield from ops.cases(device)
    elif part == "davis":
        yield from davis.cases(device)
