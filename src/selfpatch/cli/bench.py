"""`selfpatch bench`: time the fast paths against their plain references."""

import sys
from pathlib import Path

from selfpatch.cli.parsing import read_options


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    _find_benchmarks()
    from benchmarks.config import BenchConfig

    config = read_options(BenchConfig, "bench", arguments)
    from benchmarks.run import run_benchmarks

    run_benchmarks(config)
    return 0


def _find_benchmarks() -> None:
    """Make the package `benchmarks` of a source checkout importable; it is not in the wheel."""
    candidates = (Path.cwd(), Path(__file__).parents[3])  # the second one for an installation in place
    found = [str(folder) for folder in candidates if (folder / "src/selfpatch").is_dir()]
    if not found:
        raise ValueError("the benchmarks are not installed with selfpatch; clone its repository and call it there")
    sys.path.insert(0, found[0])
