"""`selfpatch launch`: what is checked before a job is queued, and a training that is preempted and goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfpatch.api.launch import output_of
from selfpatch.cli.main import main
from tests.api.test_launch import wait_until
from tests.helpers import forked_launch
from tests.helpers.command_line import TINY, differences, environment, final_state
from tests.helpers.command_line import run as run_warm
from tests.helpers.elastic import children
from tests.helpers.launched_jobs import fail, save_the_run
from tests.helpers.warm_fork import warm_server

STUB = """#!/bin/sh
cat "$1" > {queue}
echo "Submitted batch job 4711"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script that a stub of sbatch received last; it exists if a job was queued."""
    programs, queue = tmp_path / "bin", tmp_path / "queue"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text(STUB.format(queue=queue))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return queue


def launch(*command: str, nodes: int = 1, gpus: int = 2) -> int:
    options = f"--nodes {nodes} --gpus-per-node {gpus} --slurm.partition long --minutes 90".split()
    return main(["launch", *options, "--", *command])


@pytest.mark.slow
def test_a_job_is_queued(photos: Path, tmp_path: Path, queue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "photos"
    words = ["pretrain", *TINY, "--data", str(photos), "--out", str(out), "--device", "cuda"]
    assert launch(*words, nodes=2) == 0
    said = capsys.readouterr().out
    assert said == f"job 4711: 4 processes; the first one writes to {out}.job/4711_0_log.out\n"
    script = queue.read_text()
    for directive in ("nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "partition=long", "time=90", "requeue"):
        assert f"#SBATCH --{directive}\n" in script
    assert f"#SBATCH --job-name=selfpatch-{out.name}\n" in script
    assert (Path(f"{out}.job") / "4711_submission.sh").read_text() == script
    assert (Path(f"{out}.job") / "4711_submitted.pkl").is_file()
    assert not out.exists(), "the job makes the run directory"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "there is no command to launch"),
        ("study x.yaml --data .", "'study' cannot be launched; use one of: pretrain, resume, evaluate, embed"),
        ("pretrain --recipe small-cpu", "launch needs the --out of `pretrain`"),
        ("pretrain --recipe small-cpu --out {new} --lr 3", "did you mean --optimizer.base-lr?"),
        ("pretrain --recipe small-cpu --out {new} --batch-size 7", "cannot be shared out over 2 processes"),
        ("pretrain --recipe small-cpu --out {run}", "already holds a run"),
        ("evaluate knn --weights {run} --data nowhere --out {new}", "nowhere"),
        ("evaluate all --suite {suite} --weights {run} --out {new}", "nowhere"),
        ("embed --weights {run} --data . --out {new} --limit x", "limit"),
        ("resume {new}", "is no run"),
    ],
)
def test_a_wrong_command_is_not_queued(
    command: str, sentence: str, run: Path, tmp_path: Path, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text("- knn: {data: nowhere}")
    words = command.format(new=tmp_path / "new", run=run, suite=tmp_path / "suite.yaml").split()
    assert launch(*words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not queue.exists()
    assert "WORLD_SIZE" not in os.environ


def test_what_sbatch_says_is_passed_on(
    run: Path, tmp_path: Path, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition: long' >&2; exit 1\n")
    assert main(["launch", "--folder", str(tmp_path / "job"), "--", "resume", str(run)]) == 2
    assert "sbatch refuses the job: invalid partition: long" in capsys.readouterr().err


def test_a_dry_run_prints_the_script(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where there is no Slurm."""
    words = ["pretrain", *TINY, "--data", str(photos), "--out", str(tmp_path / "run")]
    assert main(["launch", "--dry-run", "--gpus-per-node", "4", "--", *words]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --gpus-per-node=4\n" in said
    assert "processes" in said, "the dry run of the command counts them"
    assert list(tmp_path.iterdir()) == []


LOCAL = "--executor local --gpus-per-node 0 --processes-per-node 2".split()


@pytest.mark.slow
def test_a_stopped_command_stops_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfpatch.cli.launch.run_command", save_the_run)
    (tmp_path / "config.yaml").write_text("{}")
    marks, presses = [tmp_path / str(rank) for rank in range(2)], [KeyboardInterrupt()]

    def interrupted(job: Any) -> Iterator[str]:
        wait_until(lambda: all(mark.exists() for mark in marks))
        if presses:
            raise presses.pop()
        return output_of(job)

    monkeypatch.setattr("selfpatch.cli.launch.output_of", interrupted)
    assert main(["launch", *LOCAL, "--folder", str(tmp_path / "job"), "--", "resume", str(tmp_path)]) == 130
    assert [mark.read_text() for mark in marks] == ["saved"] * 2
    assert not list((tmp_path / "job").glob("*_result.pkl")), "a job that Slurm puts back after SIGTERM has not ended"


@pytest.mark.slow
def test_a_failed_job_says_how_it_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("selfpatch.cli.launch.run_command", fail)
    (tmp_path / "config.yaml").write_text("{}")
    words = ["launch", *LOCAL, "--folder", str(tmp_path / "job"), "--", "resume", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"2 of 2 processes failed, as {tmp_path}/job tells; to continue: selfpatch {' '.join(words)}\n" in error
    assert "no such image" in next((tmp_path / "job").glob("*_1_log.out")).read_text()


def steps_done(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


@pytest.mark.slow
def test_a_pre_empted_training_goes_on_exactly(photos: Path, tmp_path: Path) -> None:
    """One of two processes is told to save; both start again and end as two that were not disturbed."""
    steps = "--epochs 6 --loader.workers 1 --watch.picture-images 0".split()
    words = ["pretrain", *TINY, *steps, "--data", str(photos), "--out"]
    whole, out = tmp_path / "whole", tmp_path / "launched"
    done = run_warm(tmp_path, *words, str(whole), processes=2)
    assert done.returncode == 0, done.stderr

    arguments = (*LOCAL, "--", *words, str(out))
    process = warm_server().start(forked_launch.launch, arguments, environment=environment(tmp_path))
    wait_until(lambda: steps_done(out) >= 3 or process.poll() is not None)
    (controller,) = children(process.pid)
    os.kill(children(controller)[1], signal.SIGUSR2)
    assert process.wait() == 0
    log = next(Path(f"{out}.job").glob("*_0_log.out")).read_text()
    assert f"Requeued job {controller}" in log
    assert "stopped and saved" in log
    assert differences(final_state(out), final_state(whole)) == []
