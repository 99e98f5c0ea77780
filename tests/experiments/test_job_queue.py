"""Jobs of Slurm for the networks of a study, by stubs of its programs: what fails, and what is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitit import SlurmJob

from selfpatch.api.launch import JobConfig, SlurmConfig
from selfpatch.experiments.job_queue import queue_jobs
from tests.helpers.pool_jobs import execute
from tests.helpers.stub_slurm import write_programs

pytestmark = pytest.mark.slow


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the queued scripts."""
    monkeypatch.setattr("submitit.Job._results_timeout_s", 0)  # for a shared file system
    SlurmJob.watcher.clear()  # numbers of jobs are those of another test
    path, scripts = write_programs(tmp_path)
    monkeypatch.setenv("PATH", path)
    return scripts


def outcomes(jobs: list[str], folder: Path, started: list[str]) -> dict[str, list[str]]:
    """Queue jobs to their end; `started` receives those that are new, and may refuse more of them."""
    config = JobConfig(minutes=30, slurm=SlurmConfig(partition="long"))
    (folder / "here").mkdir(exist_ok=True)
    ended = queue_jobs(
        jobs, execute, [folder / "here"], folder / "logs", lambda job, slot: started.append(job), config=config,
        num_gpus=1, name_of=lambda job: job.replace(" ", "-"), poll_seconds=0.05,
    )  # fmt: skip
    return dict(ended)


def test_each_job_has_an_outcome(scripts: Path, tmp_path: Path) -> None:
    started: list[str] = []
    ended = outcomes(["fail it", "crash", "die", "work"], tmp_path, started)
    assert started == ["fail it", "crash", "die", "work"]
    assert ended["fail it"] == ["it failed"]
    assert ended["crash"][0].startswith("KeyError: ")
    assert ended["die"][0].startswith("job 103 of Slurm ended in the state FAILED; its last output is in ")
    assert "Traceback" in (tmp_path / "logs" / "crash" / "102_0_log.out").read_text()
    assert ended["work"] == []
    for directive in ("job-name=work", "partition=long", "time=30", "gpus-per-node=1", "ntasks-per-node=1"):
        assert f"#SBATCH --{directive}\n" in (scripts / "104.sh").read_text()
    assert not list((tmp_path / "logs").rglob("queued.txt"))


def test_a_queued_job_is_found_again(scripts: Path, tmp_path: Path) -> None:
    class Stopped(list[str]):
        def append(self, job: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcomes(["sleep 3"], tmp_path, Stopped())
    started: list[str] = []
    assert outcomes(["sleep 3", "work"], tmp_path, started) == {"sleep 3": [], "work": []}
    assert started == ["work"], "the other one was in the queue"
    assert outcomes(["work"], tmp_path, started) == {"work": []}
    assert started == ["work", "work"], "a job that has ended is queued again"
    assert len(list(scripts.glob("*.sh"))) == 3
