"""Settings of the benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from annotated_types import Gt, MinLen
from pydantic import PositiveInt

from selfpatch.config.schema import Size, settings

Clock = Literal["wall", "cpu"]
"""The time that passes, or that of the processor in all threads of this process."""
DEFAULT_PARTS = ("loader", "step", "end_to_end", "ops", "davis", "scaling")
PARTS = (*DEFAULT_PARTS, "objectives", "packing")
"""Names of the benchmarks."""


@settings
class BenchConfig:
    """Time every fast path against its plain reference: images per second, memory, and the share of the peak rate.

    The peak rate is that of matrix products on the same machine.
    """

    parts: tyro.conf.Positional[tuple[str, ...]] = DEFAULT_PARTS
    """Benchmarks to run, some of loader, step, end_to_end, ops, davis, scaling, objectives and packing. All but the
    last two, which compare objectives with one another, and packed crops with separate passes, run by default and take
    some ten minutes on two cores."""
    data: str | None = None
    """Folder of photographs for loader and end_to_end; if not given, the built-in samples, which are small."""
    model: Annotated[tuple[str, ...], MinLen(1)] = ("vit_small",)
    """Models of step, end_to_end, objectives and packing; davis takes the first one."""
    batch_size: PositiveInt = 4
    """Number of images in a step; 16 times as many in that of a small recipe of packing."""
    global_size: Size = 224
    """Side of the two global crops of step, end_to_end, objectives and packing in pixels, or height and width."""
    local_size: Size = 96
    """Side of their eight local crops in pixels, or height and width."""
    num_prototypes: PositiveInt = 65536
    """Number of their image prototypes."""
    memory: bool = True
    """Measure the peak memory of a step too; on a CPU each variant then runs in a process of its own."""
    seconds: Annotated[float, Gt(0)] = 4.0
    """Approximate time for each case in seconds; each variant is timed at least three times."""
    clock: Clock = "wall"
    """Time that is counted by loader, step, packing, ops and davis: `wall`, or `cpu`, that of the processor in this
    process, which other programs hardly change."""
    device: str = "auto"
    """Device to time: `auto` (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps."""
    out: str | None = None
    """JSON file for all times, with the machine and the versions."""

    def __post_init__(self) -> None:
        """Check that the benchmarks exist."""
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"there is no benchmark {part!r}; use some of: {', '.join(PARTS)}")
