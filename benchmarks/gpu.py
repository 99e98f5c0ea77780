"""All that is measured on a machine with a GPU, within a limit of time: `benchmarks/gpu.sh`.

Parts run one after the other in processes of their own, each with a limit; one that fails does not stop the others. In
the folder of results are one JSON file for each part, and summary.json, which is written anew after each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal
from xml.etree import ElementTree

import tyro
from pydantic import PositiveFloat

from benchmarks.photographs import write_photographs
from selfpatch.config.schema import settings
from selfpatch.core.atomic_io import write_atomically

ROOT = Path(__file__).parents[1]
MARKER = "from tests.helpers.devices import"
"""Line that tells the files with tests that need CUDA."""
SHORTEST = 10.0
"""Time in seconds below which a part is not started."""
KILLED_AFTER = 5.0
"""Time in seconds that a part has to end after it was asked to."""


@settings
class GPUConfig:
    """Run the tests that need CUDA, the benchmarks and, if given, a study; all within a limit of time."""

    out: str = "benchmark-results"
    """Folder of the results."""
    device: str = "cuda"
    """Device to measure: cuda, cuda:N, or cpu to try the script."""
    size: Literal["full", "tiny"] = "full"
    """Size of the benchmarks: `full` for a GPU, `tiny` to try the script in two minutes."""
    seconds: PositiveFloat = 520.0
    """Limit for all parts together, in seconds."""
    only: tuple[Literal["tests", "end_to_end", "step", "packing", "parallel", "loader", "study", "davis"], ...] = ()
    """Parts to run; all if not given."""
    photographs: str | None = None
    """Folder of photographs for loader and training; if not given, some of ImageNet's size are made of the samples."""
    study: str | None = None
    """File of a study to run in the time that is left; what it has finished by then goes into study.json."""
    data: str | None = None
    """Folder of all data for the study."""
    study_options: tuple[str, ...] = ()
    """Further words of the command `selfpatch study`, e.g. --study-options=--size=gpu."""
    study_out: str | None = None
    """Folder of the study's runs, where it continues next time; if not given, they are not kept."""

    def __post_init__(self) -> None:
        """Check that a study has its data."""
        if (self.study is None) != (self.data is None):
            raise ValueError("a study needs the folder of its data; give both --study and --data, or neither")


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: name of the part.
        command: what to run.
        limit: longest time in seconds.
        may_run_out: whether the end of its time is no failure.
    """

    name: str
    command: Sequence[str]
    limit: float
    may_run_out: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of a part."""

    status: Literal["passed", "failed", "out of time", "not started"]
    seconds: float
    code: int | None = None
    """Exit code, None if the part was stopped."""


FULL = ("--batch-size", "64", "--seconds", "15", "--model", "vit_small", "vit_base")
PACKED = ("--batch-size", "64", "--seconds", "2", "--model", "vit_small", "vit_base")
TRAINED = ("--batch-size", "128", "--seconds", "8", "--model", "vit_small", "vit_base")
TINY_CROPS = ("--global-size", "64", "--local-size", "48", "--num-prototypes", "64", "--no-memory")
TINY = ("--batch-size", "2", "--seconds", "0.01", "--model", "vit_tiny", *TINY_CROPS)
NUM_PHOTOGRAPHS = {"full": 512, "tiny": 8}


def parts(config: GPUConfig, photographs: Path, study_out: Path) -> Iterator[Part]:
    """Yield the parts in the order of their worth, as the last ones may find no time left."""
    full, out, python = config.size == "full", Path(config.out).resolve(), sys.executable

    def part(name: str, limit: float, *words: str) -> Part:
        return Part(name, (python, "-m", *words), limit if full else config.seconds)

    def benchmark(name: str, limit: float, *options: str) -> Part:
        common = ("--device", config.device, "--out", str(out / f"{name}.json"), *options)
        module = ("benchmarks.parallel",) if name == "parallel" else ("benchmarks", name)
        return part(name, limit, *module, *common)

    found = f"--junitxml={out / 'tests.xml'}"
    yield part("tests", 100, "pytest", "-m", "cuda", found, "-p", "no:cacheprovider", *cuda_tests())
    images = ("--data", str(photographs))
    yield benchmark("end_to_end", 140, *images, *(TRAINED if full else TINY))
    yield benchmark("step", 90, *(FULL if full else TINY))
    yield benchmark("packing", 40, *(PACKED if full else TINY))
    sharded = ("--size", "tiny", "--model", "vit_tiny", "--batch-size", "2", "--steps", "2")
    yield benchmark("parallel", 50, *(() if full else sharded))
    yield benchmark("loader", 50, *images, "--seconds", "1" if full else "0.01")
    if config.study is not None and config.data is not None:
        files = (config.study, "--data", config.data, "--out", str(study_out), "--device", config.device)
        words = (python, "-m", "selfpatch", "study", *files, *config.study_options)
        yield Part("study", words, config.seconds, may_run_out=True)
    yield benchmark("davis", 30, *(("--seconds", "5") if full else TINY))


def cuda_tests() -> list[str]:
    """Return the files with tests that need CUDA; others may need packages that the machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if MARKER in file.read_text(encoding="utf-8")]


def run(part: Part, seconds_left: float) -> Outcome:
    """Run a part within its limit, with its output to the terminal."""
    limit = min(part.limit, seconds_left)
    if limit < SHORTEST:
        return Outcome("not started", 0.0)
    print(f"== {part.name}, at most {limit:.0f} s", flush=True)
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = monotonic()
    # A group of its own, so that loader processes and pytest's workers end with the part.
    process = subprocess.Popen(part.command, cwd=ROOT, env=environment, process_group=0)
    code: int | None = None
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # it may save what it has
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILLED_AFTER)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds = monotonic() - started
    if code is None:
        return Outcome("out of time", seconds)
    return Outcome("passed" if code == 0 else "failed", seconds, code)


def tests_as_dict(file: Path) -> dict[str, Any]:
    """Return the counts of pytest's report in XML, and the name and message of each test that failed."""
    suite = next(ElementTree.parse(file).getroot().iter("testsuite"))
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = {
        f"{case.attrib['classname']}::{case.attrib['name']}": found.attrib.get("message", "")
        for case in suite.iter("testcase")
        for found in (*case.iter("failure"), *case.iter("error"))
    }
    return {**counts, "seconds": float(suite.attrib["time"]), "failed": failed}


def collect_study(folder: Path, out: Path) -> None:
    """Write all results of a study, by their path in its folder, to study.json, and copy its report."""
    results = {str(file.relative_to(folder)): json.loads(file.read_text()) for file in folder.rglob("result.json")}
    write_atomically(out / "study.json", json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    if (report := folder / "report.html").is_file():
        shutil.copy(report, out / "study.html")


def run_all(config: GPUConfig) -> Mapping[str, Outcome]:
    """Run all parts; a part's outcome is written before the next one starts."""
    started, out = monotonic(), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as temporary:
        photographs = Path(temporary) / "photographs"
        study_out = Path(config.study_out or f"{temporary}/study").resolve()
        if config.photographs is None:
            write_photographs(photographs, NUM_PHOTOGRAPHS[config.size])
        else:
            photographs = Path(config.photographs).resolve()
        for part in parts(config, photographs, study_out):
            if config.only and part.name not in config.only:
                continue
            outcome = run(part, config.seconds - (monotonic() - started))
            if part.may_run_out and outcome.status == "out of time":
                outcome = Outcome("passed", outcome.seconds)
            outcomes[part.name] = outcome
            if (report := out / "tests.xml").is_file():
                write_atomically(out / "tests.json", json.dumps(tests_as_dict(report), indent=1) + "\n")
                report.unlink()
            if part.name == "study":
                collect_study(study_out, out)
            summary = {name: asdict(of_part) for name, of_part in outcomes.items()}
            write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    for name, outcome in outcomes.items():
        print(f"{name:12}{outcome.status:14}{outcome.seconds:6.0f} s")
    return outcomes


if __name__ == "__main__":
    done = run_all(tyro.cli(GPUConfig))
    sys.exit(any(outcome.status in ("failed", "out of time") for outcome in done.values()))
