"""What benchmarks came to: a table to look at, and JSON with the machine and the versions that it was measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import selfpatch
from benchmarks.scaling import Cost
from benchmarks.timing import Timing
from selfpatch.core.atomic_io import write_atomically


@dataclass(frozen=True)
class Report:
    """Timings of one run of the benchmarks, and the machine's ceilings in floating-point operations a second."""

    timings: Sequence[Timing]
    ceilings: dict[str, float]
    machine: dict[str, Any]
    costs: Sequence[Cost] = ()

    def tables(self) -> list[Table]:
        """One for each case that was timed."""
        return [self._table(timing) for timing in self.timings]

    def _table(self, timing: Timing) -> Table:
        table = Table(title=timing.name, title_justify="left")
        counted, measured = timing.flops is not None, bool(timing.peak_memory)
        columns = ["", "time", f"{timing.unit} / s", f"x {timing.plain}", "quartiles"]
        columns += ["GFLOP / s", "of ceiling"] * counted + ["peak memory"] * measured
        for column in columns:
            table.add_column(column, justify="right" if column else "left")
        for way in timing.seconds:
            middle, low, high = timing.speedup(way)
            row = [
                way,
                _time(timing.median(way)),
                f"{timing.rate(way):,.4g}",
                f"{middle:.2f}",
                f"{low:.2f} to {high:.2f}" if way != timing.plain else "",
            ]
            if timing.flops is not None:
                rate = timing.flops / timing.median(way)
                row += [f"{rate / 1e9:,.0f}", f"{rate / self._ceiling(way):.0%}"]
            if measured:
                row.append(f"{timing.peak_memory[way] / 2**20:,.0f} MiB")
            table.add_row(*row)
        return table

    def _ceiling(self, way: str) -> float:
        return self.ceilings["bfloat16" if "bfloat16" in way else "float32"]

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        cases = [
            {
                "name": t.name,
                "items": t.items,
                "unit": t.unit,
                "flops": t.flops,
                "ways": {
                    way: {
                        "seconds": seconds,
                        "median_seconds": t.median(way),
                        "items_per_second": t.rate(way),
                        "speedup": dict(
                            zip(("median", "lower_quartile", "upper_quartile"), t.speedup(way), strict=True)
                        ),
                        "peak_bytes": t.peak_memory.get(way),
                    }
                    for way, seconds in t.seconds.items()
                },
            }
            for t in self.timings
        ]
        costs = [asdict(cost) for cost in self.costs]
        return {"machine": self.machine, "ceilings": self.ceilings, "cases": cases, "costs": costs}


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What numbers of speed mean nothing without."""
    facts = {
        "selfpatch": selfpatch.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
