"""Report of benchmarks: tables to look at, and JSON with the machine and the versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.scaling import Cost
from benchmarks.timing import Timing
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.console import plain_table
from selfpatch.core.machine import current_versions, device_name, num_cores, processor_name


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return everything that a number of speed depends on: versions, processor, cores, threads and device."""
    gpu = {"gpu": device_name(device)} if device.type == "cuda" else {}
    return {
        **current_versions(),
        "torch": torch.__version__,  # names the build too, e.g. 2.15.0+cu132
        "processor": processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        **gpu,
    }


@dataclass(frozen=True)
class Report:
    """Results of one run of the benchmarks.

    Attributes:
        timings: times of each case.
        ceilings: peak rate of matrix products by type, in floating-point operations per second.
        machine: result of `describe_machine`.
        costs: cost of a step as one setting grows.
    """

    timings: Sequence[Timing]
    ceilings: dict[str, float]
    machine: dict[str, Any]
    costs: Sequence[Cost] = ()

    def tables(self) -> list[Table]:
        """Return one table for each case."""
        return [self._table(timing) for timing in self.timings]

    def _table(self, timing: Timing) -> Table:
        table = plain_table(title=timing.name, title_justify="left")
        counted, measured = timing.flops is not None, bool(timing.peak_memory)
        columns = ["", "time", f"{timing.unit} / s", f"x {timing.plain}", "quartiles"]
        columns += ["GFLOP / s", "of ceiling"] * counted + ["peak memory"] * measured
        for column in columns:
            table.add_column(column, justify="right" if column else "left", overflow="fold")
        for variant in timing.seconds:
            middle, low, high = timing.speedup(variant)
            row = [
                variant,
                _time(timing.median(variant)),
                f"{timing.rate(variant):,.4g}",
                f"{middle:.2f}",
                f"{low:.2f} to {high:.2f}" if variant != timing.plain else "",
            ]
            if timing.flops is not None:
                rate = timing.flops / timing.median(variant)
                row += [f"{rate / 1e9:,.0f}", f"{rate / self._ceiling(variant):.0%}"]
            if measured:
                row.append(f"{timing.peak_memory[variant] / 2**20:,.0f} MiB")
            table.add_row(*row)
        return table

    def _ceiling(self, variant: str) -> float:
        return self.ceilings["bfloat16" if "bfloat16" in variant else "float32"]

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_atomically(path, json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "machine": self.machine,
            "ceilings": self.ceilings,
            "cases": [_case_as_dict(timing) for timing in self.timings],
            "costs": [asdict(cost) for cost in self.costs],
        }


def _case_as_dict(timing: Timing) -> dict[str, Any]:
    ways = {
        variant: {
            "seconds": seconds,
            "median_seconds": timing.median(variant),
            "items_per_second": timing.rate(variant),
            "speedup": dict(zip(("median", "lower_quartile", "upper_quartile"), timing.speedup(variant), strict=True)),
            "peak_bytes": timing.peak_memory.get(variant),
        }
        for variant, seconds in timing.seconds.items()
    }
    return {"name": timing.name, "items": timing.items, "unit": timing.unit, "flops": timing.flops, "ways": ways}


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
