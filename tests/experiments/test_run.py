"""Whole studies of seconds: what is written, what is not done again, kills at any moment, the studies of ours."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from selfpatch import run_study
from selfpatch.api.launch import JobConfig
from selfpatch.cli.study import StudyOptions
from selfpatch.experiments import collect
from selfpatch.experiments import run as running
from selfpatch.experiments.jobs import WorkerSlot, is_done, is_trained, jobs_of, run_job
from selfpatch.experiments.report import write_study_report
from selfpatch.experiments.results import StudyResults
from selfpatch.experiments.spec import read_study
from tests.helpers.command_line import start
from tests.helpers.tiny_study import FROM_WEIGHTS, PLAN, needs_weights, write_study, write_weights
from tests.helpers.warm_fork import WarmProcess

STUDIES = Path(__file__).parents[2] / "studies"
KILLS = int(os.environ.get("SELFPATCH_KILLS", "1"))
SIZE = os.environ.get("SELFPATCH_STUDY_SIZE", "test")
"""The size at which the slow tests run the studies of ours: cpu takes hours."""
WEIGHTS = os.environ.get("SELFPATCH_WEIGHTS")
"""Weights that our studies start from, in place of tiny ones."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


class Measured(NamedTuple):
    """A study that ran without a stop, and what it held before any test changed it."""

    out: Path
    seconds: float
    metrics: dict[str, Any]
    tables: list[list[str]]


@pytest.fixture(scope="module")
def measured(folder: Path) -> Measured:
    out, began = folder / "undisturbed", time.monotonic()
    assert run_study(write_study(folder), folder, out, device="cpu", processes=2, notify=lambda line: None) == []
    return Measured(out, time.monotonic() - began, metrics(out), tables(out))


@pytest.fixture(scope="module")
def undisturbed(measured: Measured) -> Path:
    return measured.out


def again(folder: Path, out: Path, **changes: Any) -> tuple[list[str], list[str]]:
    """The failures, and what was told."""
    told: list[str] = []
    failures = run_study(write_study(folder, **changes), folder, out, device="cpu", processes=1, notify=told.append)
    return failures, told


def tables(out: Path) -> list[list[str]]:
    """The cells of the report's tables, but for times."""
    lines = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    minutes = next(row.index("minutes") for row in cells if "minutes" in row)
    results = len(cells[0])
    return [[c for i, c in enumerate(row) if i != minutes] if len(row) == results else row for row in cells]


def metrics(out: Path) -> dict[str, Any]:
    """Every number of every evaluation, and every loss of every run."""
    found: dict[str, Any] = {
        str(path.relative_to(out)): json.loads(path.read_text())["metrics"] for path in out.rglob("result.json")
    }
    for path in out.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(out))] = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    return found


@pytest.mark.slow
def test_what_is_written(undisturbed: Path) -> None:
    report = (undisturbed / "report.md").read_text()
    assert report.startswith("# tiny")
    for name in ("untrained", "mean colour, 4 x 4 pixels", "DINO", "DINO + SelfPatch"):
        assert f"| {name}" in report
    assert re.search(r"\| DINO \| .*\d ± \d.* \| 20 \| [\d.]+ \|", report), "mean, spread, steps and minutes"
    assert "2 of 2" in report or "1 of 2" in report or "0 of 2" in report
    for link in re.findall(r"!\[.*?\]\(<(.*?)>\)", report):
        assert (undisturbed / link).stat().st_size > 500
    for name in ("loss.svg", "first-j-f.svg", "patch-features.png"):
        assert (undisturbed / "figures" / name).is_file()
    assert "data:image/svg+xml" in (undisturbed / "report.html").read_text()
    stages = sorted(path.name for path in (undisturbed / "dino-seed0" / "over_time").iterdir())
    assert stages == ["00000000", "00000010", "00000020"], "untrained, then each kept checkpoint"


@pytest.mark.slow
def test_what_is_done_is_not_done_again(folder: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("result.json")}
    failures, told = again(folder, undisturbed)
    assert failures == []
    assert told[0] == "tiny: 7 jobs, 7 done before"
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("result.json")} == before


@pytest.mark.slow
def test_what_is_added_is_all_that_is_run(folder: Path, undisturbed: Path) -> None:
    """An evaluation more, of a network that is there."""
    more = {"davis": {"data": "davis", "resolution": 32}, "columns": {"J&F-Mean": "J&F at 32"}}
    study = read_study(write_study(folder, evaluations=[*PLAN["evaluations"], more]), folder)
    (job,) = (job for job in jobs_of(study, {}) if job.name == "DINO, seed 1")
    assert not is_done(job, study, undisturbed)
    before, own = metrics(undisturbed), undisturbed / job.folder
    written = {path: path.stat().st_mtime_ns for path in (own / "run").rglob("*") if path.is_file()}
    assert run_job(job, study, undisturbed, WorkerSlot("cpu", 1)) == []
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert metrics(undisturbed).keys() - before.keys() == {f"{job.folder}/evaluations/2-davis/result.json"}
    assert {name: metrics(undisturbed)[name] for name in before} == before
    assert is_done(job, study, undisturbed)


@pytest.mark.slow
def test_other_settings_are_not_mixed_in(folder: Path, undisturbed: Path) -> None:
    before = metrics(undisturbed)
    settings = {**PLAN["settings"], "optimizer": {"warmup_epochs": 2}}
    failures, _ = again(folder, undisturbed, settings=settings)
    assert len(failures) == 6, "all but the baseline"
    assert "was begun with other settings (run.optimizer.warmup_epochs is 1.0 there and 2.0 now)" in failures[0]
    assert metrics(undisturbed) == before
    assert next(row[1:4] for row in tables(undisturbed) if row[0] in PLAN["arms"]) == ["–", "–", "–"], (
        "nor in the table"
    )


@pytest.mark.slow
def test_kills_at_any_moment_change_no_number(folder: Path, measured: Measured, tmp_path: Path) -> None:
    """The whole process group is killed, as by a power cut, a scheduler or a person."""
    write_study(folder)
    killed = tmp_path / "killed"

    def begin() -> WarmProcess:
        words = ["study", str(folder / "tiny.yaml"), "--data", str(folder), "--out", str(killed)]
        return start(tmp_path, *words, "--processes", "2", "--device", "cpu")

    rng = random.Random(1)
    kills = 0
    while kills < KILLS:
        process = begin()
        time.sleep(rng.uniform(0.35, 0.8) * measured.seconds)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0
    assert begin().wait(400) == 0
    assert metrics(killed) == measured.metrics
    assert tables(killed)[:-1] == measured.tables, "the last line is the command, which `run_study` does not know"


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_training_from_weights_changes_no_number(folder: Path, tmp_path: Path) -> None:
    settings = {**FROM_WEIGHTS["settings"], "checkpoint": {"every_steps": 5, "keep_every_epochs": 2}}
    arms = {
        "DINO": {"objective": "none", "seeds": [1]},
        "DINO + SelfPatch": {"pretrain": ["photos", "davis/JPEGImages"]},
    }
    path = write_study(folder, **{**FROM_WEIGHTS, "settings": settings, "arms": arms})
    weights, whole, killed = write_weights(folder), tmp_path / "whole", tmp_path / "killed"
    two = {"weights": weights, "processes": 2, "device": "cpu", "notify": lambda line: None}

    assert run_study(path, folder, whole, **two) == []
    arguments = ["study", str(path), "--data", str(folder), "--out", str(killed), "--weights", weights]
    process = start(tmp_path, *arguments, "--processes", "2", "--device", "cpu")
    run = killed / "dino-selfpatch-seed1" / "run"
    wait_until(lambda: num_lines(run / "metrics.jsonl") >= 8, 300)
    process.kill()
    process.wait()
    assert not is_trained(run), "the training was not over"
    assert run_study(path, folder, killed, **two) == []

    assert metrics(killed) == metrics(whole)
    assert tables(killed) == tables(whole)
    report = (killed / "report.md").read_text()
    assert "| as is (baseline a) |" in report
    rows = re.search(r"## Difference to as is\n(.*\n)+?\| DINO \| (.*)\n\| DINO \+ SelfPatch \| (.*)", report)
    assert rows is not None
    assert re.search(r"of 1\b", rows[2])
    assert re.search(r"± .* of 2\b", rows[3])
    steps = sorted(path.name for path in (killed / "dino-seed1" / "over_time").iterdir())
    assert steps == ["00000000", "00000010", "00000020"], "initial weights, then each kept checkpoint"


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_signal_saves_and_says_so(folder: Path, tmp_path: Path) -> None:
    write_study(folder, settings={**PLAN["settings"], "epochs": 400})
    out = tmp_path / "stopped"
    arguments = ["study", str(folder / "tiny.yaml"), "--data", str(folder), "--out", str(out), "--processes", "1"]
    with open(tmp_path / "stderr", "wb") as stderr:
        process = start(tmp_path, *arguments, stderr=stderr)
    run = out / "dino-seed0" / "run"
    wait_until(lambda: (run / "metrics.jsonl").exists())
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert (tmp_path / "stderr").read_text().strip() == "selfpatch: ended by SIGTERM"
    assert list((run / "checkpoints").glob("*.pt"))


def wait_until(what: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not what() and time.monotonic() < limit:
        time.sleep(0.02)
    assert what()


def test_an_arm_that_cannot_be_is_refused_before_anything_is_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"arm 'A': selfpatch.k is 9, but a 3x3 window has 8 neighbours"):
        again(folder, tmp_path / "out", arms={"A": {"selfpatch": {"k": 9}}})
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != ".lock"]


@pytest.mark.slow
def test_other_images_are_not_mixed_in(folder: Path, undisturbed: Path) -> None:
    study = read_study(write_study(folder), folder)
    other = read_study(write_study(folder, pretrain=["photos", "davis/JPEGImages"]), folder)
    (trained,) = (job for job in jobs_of(other, {}) if job.name == "DINO, seed 0")
    assert is_done(next(job for job in jobs_of(study, {}) if job.name == trained.name), study, undisturbed)
    assert not is_done(trained, other, undisturbed)
    with pytest.raises(ValueError, match="was begun with other settings"):
        run_job(trained, other, undisturbed, WorkerSlot("cpu", 1))


@pytest.mark.slow
def test_a_result_that_is_lost_is_measured_again(folder: Path, undisturbed: Path) -> None:
    study = read_study(write_study(folder), folder)
    job = next(job for job in jobs_of(study, {}) if job.baseline)
    path = undisturbed / job.folder / "evaluations" / "1-davis" / "result.json"
    before = json.loads(path.read_text())["metrics"]
    path.unlink()
    assert not is_done(job, study, undisturbed)
    assert collect.collect_results(study, jobs_of(study, {}), undisturbed, [], 1, "", "cpu").baselines[0].numbers == {}
    assert run_job(job, study, undisturbed, WorkerSlot("cpu", 1)) == []
    assert json.loads(path.read_text())["metrics"] == before


def test_devices_and_processes_that_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(folder)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"processes": 0}, "processes is 0; use 1 or more"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            run_study(study, folder, folder / "never", **given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="call it without torchrun"):
        run_study(study, folder, folder / "never")
    assert not (folder / "never").exists()


def test_a_cluster_gets_a_job_for_each_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[tuple[str, int, WorkerSlot]] = []

    def queue_jobs(
        jobs: Any, execute: Any, slots: Any, logs: Path, started: Any = None, **options: Any
    ) -> Iterator[Any]:
        for job in tuple(jobs):
            assert options["config"] == JobConfig(cpus_per_process=3)
            queued.append((options["name_of"](job), options["num_gpus"], slots[0]))
            yield job, ["it was not run"]

    monkeypatch.setattr(running, "queue_jobs", queue_jobs)
    path, arguments = write_study(folder, seeds=[0]), {"queue": JobConfig(cpus_per_process=3), "notify": lambda _: None}
    failures = run_study(path, folder, tmp_path / "out", **arguments)
    names = ["baseline-mean-colour-4", "untrained-dino-seed0", "dino-seed0", "dino-selfpatch-seed0"]
    assert queued == [(name, 1, WorkerSlot("auto", 3)) for name in names]
    assert failures[:2] == ["mean colour, 4 x 4 pixels: it was not run", "untrained, seed 0: it was not run"]
    assert "| device |" not in (tmp_path / "out" / "report.md").read_text(), "this machine ran nothing"
    with pytest.raises(ValueError, match="processes is 2, but Slurm decides"):
        run_study(path, folder, tmp_path / "never", processes=2, **arguments)
    with pytest.raises(ValueError, match="need --executor slurm"):
        StudyOptions(file="study.yaml", data=".", queue=JobConfig(minutes=3))


def test_a_part_of_the_table_is_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_jobs(jobs: Any, *_: Any) -> Iterator[Any]:
        for job in jobs:
            ran.append(getattr(job, "folder", f"timing of {job.name}"))
            yield job, []

    path, told = write_study(folder, arms={**PLAN["arms"], "quick": {"equal_time": "DINO"}}), []
    monkeypatch.setattr(running, "run_jobs", run_jobs)
    monkeypatch.setattr(running, "is_done", lambda job, *_: job.folder in ran)
    run = functools.partial(run_study, path, folder, tmp_path / "out", device="cpu", notify=told.append)
    run(only=["DINO", "mean colour, 4 x 4 pixels"], seeds=[1])
    assert ran == ["baseline-mean-colour-4", "dino-seed1"], "and the arm that is not asked for is not timed"
    assert "9 jobs, 0 done before" in told[0]
    assert told[-2] == "DINO, seed 1: done, 0 left"
    run(only=["untrained"])
    assert ran[2:] == ["untrained-dino-seed0", "untrained-dino-seed1"]
    with pytest.raises(ValueError, match="no row 'dino'; it has: mean colour, 4 x 4 pixels, untrained, DINO, DINO"):
        run(only=["dino"])
    with pytest.raises(ValueError, match="no seed 7; it has: 0, 1"):
        run(seeds=[7])


def test_arms_are_timed_one_after_the_other(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a cluster run at once, and each would add its arm to the file as it was before the others."""
    batches: list[list[str]] = []

    def run_jobs(arms: Any, execute: Any, slots: Any, *_: Any) -> Iterator[Any]:
        batches.append([arm.name for arm in arms])
        return ((arm, execute(arm, slots[0])) for arm in arms)

    times = {"quick": {"equal_time": "DINO"}, "slow": {"equal_time": "DINO"}}
    study, told = read_study(write_study(folder, arms={**PLAN["arms"], **times}), folder), []
    monkeypatch.setattr(running, "run_jobs", run_jobs)
    monkeypatch.setattr("selfpatch.experiments.timing.epoch_seconds", lambda configs, slot: (2.0, 1.0))
    running._time_arms(study, {"quick", "slow"}, tmp_path, WorkerSlot("cpu", 1), None, told.append)
    assert batches == [["quick"], ["slow"]]
    assert told == ["quick: 2 epochs in the time of DINO", "slow: 2 epochs in the time of DINO"]


def test_every_device_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "num_cores", lambda: 12)
    assert running._slots("cpu", None) == [WorkerSlot("cpu", 3)] * 4
    assert running._slots("cpu", 1) == [WorkerSlot("cpu", 12)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    for name in ("auto", "cuda"):
        assert running._slots(name, None) == [WorkerSlot(f"cuda:{i}", 4) for i in range(3)]
    assert [slot.device for slot in running._slots("auto", 5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert running._slots("cuda:1", 2) == [WorkerSlot("cuda:1", 6)] * 2


def test_two_studies_do_not_share_a_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def within(*_: object) -> list[str]:
        with pytest.raises(
            ValueError,
            match=r"another process \(pid \d+ on .*\) writes to .*; wait until it ends",
        ):
            again(folder, tmp_path)
        return ["ran"]

    monkeypatch.setattr("selfpatch.experiments.run._run", within)
    assert again(folder, tmp_path)[0] == ["ran"]


def in_this_process(
    jobs: Sequence[Any], execute: Any, slots: Sequence[WorkerSlot], logs: Path, started: Any = lambda *_: None
) -> Iterator[tuple[Any, list[str]]]:
    for job in tuple(jobs):
        started(job, slots[0])
        yield job, execute(job, replace(slots[0], threads=1))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(STUDIES.glob("[!c]*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_ours_run(path: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size `test`, the first and the last arm run, in this process and with one report.

    The arms between them differ in settings, which the study checks before it runs anything.
    """
    reports: list[tuple[StudyResults, Path]] = []

    def report_later(results: StudyResults, out: Path) -> Path:
        reports.append((results, out))
        return out / "report.md"

    weights = None
    if needs_weights(path):
        weights = WEIGHTS or write_weights(tmp_path, patch_size=14, crops={"global_size": 28, "local_size": 14})
    chosen: list[str] = []
    out, arms = tmp_path / "out", [arm.name for arm in read_study(path, data_dir, SIZE, weights).arms]
    if SIZE == "test":
        monkeypatch.setattr(running, "run_jobs", in_this_process)
        monkeypatch.setattr(running, "write_study_report", report_later)
        arms = chosen = [arms[0], arms[-1]]
    assert run_study(path, data_dir, out, size=SIZE, weights=weights, only=chosen, notify=lambda line: None) == []
    if reports:
        write_study_report(*reports[-1])
    lines = (out / "report.md").read_text().splitlines()
    for arm in arms:
        results = next(line for line in lines if line.startswith(f"| {arm} |"))
        assert "\N{EN DASH}" not in results, "all columns, steps and minutes are filled"
