"""Jobs by submitit: the variables of their processes, a preempted job that goes on, the script for Slurm."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selfpatch.api.launch import LaunchConfig, SlurmConfig, batch_script, failed_processes, output_of, submit
from tests.helpers import launched_jobs
from tests.helpers.elastic import children

TWO = LaunchConfig(executor="local", gpus_per_node=0, processes_per_node=2)


@pytest.mark.slow
def test_processes_have_the_variables_of_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = submit(launched_jobs.leave_mark, str(tmp_path), TWO, tmp_path / "job", "test")
    assert list(output_of(job, 0.02))
    assert failed_processes(job) == []
    marks = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert marks[0].startswith("0 2 0 2 1 1000 "), "one thread; a run is continued"
    assert marks[1].startswith("1 2 1 2 1 1000 ")
    assert marks[0].split()[-1] == marks[1].split()[-1], "both know where to meet"


@pytest.mark.slow
def test_a_pre_empted_job_goes_on(tmp_path: Path) -> None:
    job = submit(launched_jobs.save_when_told, str(tmp_path), TWO, tmp_path / "job", "test")
    marks = [tmp_path / str(rank) for rank in range(2)]
    wait_until(lambda: all(mark.exists() for mark in marks))
    for pid in children(int(job.job_id)):
        os.kill(pid, signal.SIGUSR2)
    text = "".join(output_of(job, 0.02))
    assert "Requeued job" in text
    assert [mark.read_text() for mark in marks] == ["saved, done"] * 2
    assert failed_processes(job) == []


def wait_until(what: Callable[[], bool], seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while not what() and time.monotonic() < limit:
        time.sleep(0.02)
    assert what()


def test_the_script_of_slurm(tmp_path: Path) -> None:
    slurm = SlurmConfig(
        partition="long", account="lab", qos="high", constraint="h100", mem_gb=1.5, save_seconds=60,
        setup=("module load cuda", ". env/bin/activate"), options={"reservation": "night", "exclusive": "user"},
    )  # fmt: skip
    config = LaunchConfig(nodes=4, gpus_per_node=8, cpus_per_process=12, minutes=90, slurm=slurm)
    script = batch_script(config, tmp_path / "job", "selfpatch-run")
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")} == {
        "job-name=selfpatch-run", "nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=12", "time=90",
        "partition=long", "account=lab", "qos=high", "constraint=h100", "mem=1536M", "signal=USR2@60", "requeue",
        "open-mode=append", "reservation=night", "exclusive=user", "wckey=submitit",
        f"output={tmp_path}/job/%j_0_log.out",
    }  # fmt: skip
    assert lines.index("module load cuda") + 1 == lines.index(". env/bin/activate")
    (srun,) = (line for line in lines if line.startswith("srun "))
    assert "--kill-on-bad-exit=1 --cpus-per-task=12 " in srun
    assert f"-m submitit.core._submit {tmp_path}/job" in srun
    assert not (tmp_path / "job").exists(), "nothing is written"


def test_what_is_not_given_is_left_to_the_cluster(tmp_path: Path) -> None:
    script = batch_script(LaunchConfig(gpus_per_node=0), tmp_path, "name")
    names = {line.partition("--")[2].partition("=")[0] for line in script.splitlines() if line.startswith("#SBATCH")}
    assert names == {
        "job-name", "nodes", "ntasks-per-node", "time", "signal", "requeue", "open-mode", "wckey", "output",
    }  # fmt: skip
    assert "#SBATCH --time=1440" in script


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nodes is 2, but --executor local runs on this machine alone"):
        LaunchConfig(executor="local", nodes=2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="gpus_per_node is 3, but this machine has 2"):
        batch_script(LaunchConfig(executor="local", gpus_per_node=3), tmp_path, "name")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="has no `srun`"):
        submit(launched_jobs.leave_mark, "", LaunchConfig(), tmp_path, "name")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'selfpatch\[slurm\]'"):
        submit(launched_jobs.leave_mark, "", LaunchConfig(), tmp_path, "name")
