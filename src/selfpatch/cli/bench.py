"""`selfpatch bench`: time the fast paths against their plain references."""

import importlib.util
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
    """Make the package `benchmarks` importable: it is not in the wheel, but stands next to pyproject.toml."""
    if importlib.util.find_spec("benchmarks") is not None:
        return
    checkout = Path(__file__).parents[3]
    if not (checkout / "benchmarks" / "__init__.py").is_file():
        raise ValueError("the benchmarks are not installed with selfpatch; clone its repository and install that")
    sys.path.append(str(checkout))
