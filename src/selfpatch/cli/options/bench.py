"""Options of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from benchmarks.report import Report


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time every fast path against its plain reference, side by side: images a second, memory, and how near to what the
    machine can do."""

    parts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Some of loader, step, ops, davis, scaling; none: all of them, some ten minutes on two cores."""
    data: str | None = None
    """Folder of photographs for the loader; None: the built-in samples, which are small."""
    model: str = "vit_small"
    """Of the step."""
    batch_size: int = 4
    """Of the step."""
    seconds: float = 4.0
    """About how long each case is timed; each way at least three times."""
    device: str = "auto"
    out: str | None = None
    """JSON file for all times, with the machine and the versions."""

    def run(self) -> Report:
        from rich.console import Console

        from benchmarks.running import PARTS, run_benchmarks
        from selfpatch.core.distributed import start

        if self.seconds <= 0 or self.batch_size < 1:
            raise ValueError(
                f"seconds is {self.seconds:g} and batch_size {self.batch_size}; use more than 0 s and 1 image or more"
            )
        return run_benchmarks(
            self.parts or PARTS,
            device=start(self.device),
            data=None if self.data is None else Path(self.data),
            model=self.model,
            batch_size=self.batch_size,
            seconds=self.seconds,
            out=None if self.out is None else Path(self.out),
            tell=Console().print,
        )
