"""The script for a GPU machine: its parts, their limits, and what is left when one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gpu
from benchmarks.config import PARTS
from benchmarks.gpu import GPUConfig, Part, cuda_tests, parts, run, run_all
from benchmarks.photographs import write_photographs

ROOT = Path(gpu.__file__).parents[1]
PYTHON = sys.executable


def test_the_limits_add_up_to_less_than_nine_minutes(tmp_path: Path) -> None:
    found = list(parts(GPUConfig(out=str(tmp_path)), tmp_path, tmp_path))
    names = ["tests", "end_to_end", "step", "packing", "parallel", "loader", "davis"]
    assert [part.name for part in found] == names
    assert sum(part.limit + gpu.KILLED_AFTER for part in found) < 540
    assert GPUConfig().seconds + gpu.KILLED_AFTER < 540


def test_each_part_is_a_program_that_runs_it(tmp_path: Path) -> None:
    """A module without a program would end at once, and count as passed."""
    commands = {part.name: part.command for part in parts(GPUConfig(out=str(tmp_path)), tmp_path, tmp_path)}
    for name in ("end_to_end", "step", "packing", "loader", "davis"):
        assert commands[name][1:4] == ("-m", "benchmarks", name)
        assert name in PARTS
    assert commands["parallel"][1:3] == ("-m", "benchmarks.parallel")


def test_a_study_takes_the_time_that_is_left(tmp_path: Path) -> None:
    config = GPUConfig(out=str(tmp_path), study="s.yaml", data="data", study_options=("--size=gpu",))
    study = next(part for part in parts(config, tmp_path, tmp_path / "runs") if part.name == "study")
    assert study.may_run_out
    assert study.command[2:6] == ("selfpatch", "study", "s.yaml", "--data")
    assert study.command[-1] == "--size=gpu"
    with pytest.raises(ValueError, match="a study needs the folder of its data"):
        GPUConfig(study="s.yaml")


def test_the_files_with_cuda_tests_are_found() -> None:
    """Their tests with the mark are counted by pytest itself in the test of the script."""
    found = cuda_tests()
    assert "tests/end_to_end/test_devices.py" in found
    assert "tests/data/augment/test_gpu.py" in found
    assert "tests/benchmarks/test_step.py" not in found
    assert "tests/benchmarks/test_gpu.py" not in found


def test_a_part_passes_fails_runs_out_of_time_or_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SHORTEST", 0.01)
    assert run(Part("a", [PYTHON, "-c", "import selfpatch, benchmarks"], 60), 60).status == "passed"
    failed = run(Part("b", [PYTHON, "-c", "raise SystemExit(3)"], 60), 60)
    assert (failed.status, failed.code) == ("failed", 3)
    waiting = [PYTHON, "-c", "import time; time.sleep(600)"]
    assert run(Part("c", waiting, 0.2), 60).status == "out of time"
    assert run(Part("c", waiting, 60), 0.2).status == "out of time"
    monkeypatch.setattr(gpu, "SHORTEST", 10.0)
    assert run(Part("d", waiting, 60), 5).status == "not started"


@pytest.mark.slow
def test_what_a_part_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SHORTEST", 0.01)
    monkeypatch.setattr(gpu, "KILLED_AFTER", 0.1)
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    pid = tmp_path / "pid"
    started = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {script!r}]); "
    started += f"open({str(pid)!r}, 'w').write(str(p.pid)); p.wait()"
    assert run(Part("a", [PYTHON, "-c", started], 10), 10).status == "out of time"
    state = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(600):  # the kernel ends a killed process when it gets time on a core
        if not state.exists() or state.read_text().split()[2] in "ZX":
            return
        time.sleep(0.1)
    pytest.fail("the process still runs")


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="2.5"><testcase classname="a" '
    report += 'name="b"><failure message="no"/></testcase></testsuite></testsuites>'
    (tmp_path / "tests.xml").write_text(report)
    found = [
        Part("tests", [PYTHON, "-c", "raise SystemExit(1)"], 60),
        Part("study", [PYTHON, "-c", "import time; time.sleep(600)"], 0.2, may_run_out=True),
        Part("loader", [PYTHON, "-c", ""], 60),
    ]
    monkeypatch.setattr(gpu, "SHORTEST", 0.01)
    monkeypatch.setattr(gpu, "parts", lambda *_: iter(found))
    (tmp_path / "runs" / "dino-seed0" / "1-davis").mkdir(parents=True)
    (tmp_path / "runs" / "dino-seed0" / "1-davis" / "result.json").write_text('{"metrics": {"J&F-Mean": 0.5}}')
    outcomes = run_all(GPUConfig(out=str(tmp_path), size="tiny", study_out=str(tmp_path / "runs")))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "tests": "failed", "study": "passed", "loader": "passed"
    }  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["tests"]["code"] == 1
    expected = {"tests": 3, "failures": 1, "errors": 0, "skipped": 1, "seconds": 2.5, "failed": {"a::b": "no"}}
    assert json.loads((tmp_path / "tests.json").read_text()) == expected
    assert not (tmp_path / "tests.xml").exists()
    study = json.loads((tmp_path / "study.json").read_text())
    assert study == {"dino-seed0/1-davis/result.json": {"metrics": {"J&F-Mean": 0.5}}}


def test_photographs_have_imagenets_size(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "photographs", 20)
    files = sorted(folder.iterdir())
    assert len(files) == 20
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert len({file.read_bytes() for file in files}) == 20


@pytest.mark.slow
@pytest.mark.parametrize("only", [("tests", "step"), ("end_to_end", "loader"), ("parallel",)])
def test_the_script_runs_on_a_cpu(only: tuple[str, ...], tmp_path: Path) -> None:
    environment = {**os.environ, "DEVICE": "cpu", "SIZE": "tiny", "OUT": str(tmp_path), "PYTHON": PYTHON}
    environment["PYTEST_ADDOPTS"] = "-n 0"  # all of its tests are skipped here
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--seconds", "540", "--only", *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: part["status"] for name, part in summary.items()} == dict.fromkeys(only, "passed")
    if "tests" in only:
        assert json.loads((tmp_path / "tests.json").read_text())["tests"] > 50
    if "parallel" in only:
        rows = json.loads((tmp_path / "parallel.json").read_text())["rows"]
        assert [(row["kind"], row["saving"]) for row in rows[:2]] == [("ddp", "none"), ("ddp", "file")]
        assert all(row["step_seconds"] > 0 for row in rows)
        assert all((row["saving_seconds"] > 0) == (row["saving"] != "none") for row in rows)
    for name in {*only} - {"tests", "parallel"}:
        cases = json.loads((tmp_path / f"{name}.json").read_text())["cases"]
        assert all(way["items_per_second"] > 0 for case in cases for way in case["ways"].values())
