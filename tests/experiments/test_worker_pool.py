"""Jobs in processes of their own: their order, what fails, what is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfpatch.experiments.worker_pool import run_jobs
from tests.helpers.pool_jobs import execute


def outcomes(jobs: list[str], slots: list[Path], logs: Path) -> dict[str, list[str]]:
    for slot in slots:
        slot.mkdir(exist_ok=True)
    return dict(run_jobs(jobs, execute, slots, logs))


def test_a_job_that_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    ended = outcomes(["fail it", "refuse", "crash", "die", "work"], [tmp_path / "here"], tmp_path / "logs")
    assert ended["fail it"] == ["it failed"]
    assert ended["refuse"] == ["this cannot be"]
    assert ended["crash"][0].startswith("KeyError: ")
    assert "\n" not in ended["crash"][0]
    assert "signal 9" in ended["die"][0]
    assert ended["work"] == []
    assert "a mistake" in (tmp_path / "logs" / "worker-0.log").read_text(), "the log has the whole traceback"
    pids = {job: int((tmp_path / "here" / job).read_text()) for job in ended}
    assert pids["fail it"] == pids["refuse"] == pids["crash"], "what was foreseen leaves the process as it was"
    assert len({pids["crash"], pids["die"], pids["work"]}) == 3, "after what was not, another one goes on"


def test_slots_work_at_once_and_each_takes_the_next_job(tmp_path: Path) -> None:
    slots = [tmp_path / "one", tmp_path / "two"]
    ended = outcomes(["sleep 2", "work a", "work b", "work c"], slots, tmp_path / "logs")
    assert list(ended)[-1] == "sleep 2", "the others did not wait for it"
    assert sum((slot / "sleep 2").exists() for slot in slots) == 1
    assert len({(p / j).read_text() for p in slots for j in ended if (p / j).exists()}) == 2


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    """Killed in a way that nothing can be done about."""
    (tmp_path / "here").mkdir()
    code = f"""
from pathlib import Path
from selfpatch.experiments.worker_pool import run_jobs
from tests.helpers.pool_jobs import execute
if __name__ == "__main__":
    list(run_jobs(["sleep 100"], execute, [Path({str(tmp_path / "here")!r})], Path({str(tmp_path)!r})))
"""
    (tmp_path / "main.py").write_text(code)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], env={**os.environ, "PYTHONPATH": str(root)})
    mark = tmp_path / "here" / "sleep 100"
    assert wait_until(lambda: mark.exists() and mark.read_text() != "")
    child = int(mark.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not alive(child)), "it works on although nobody waits for it"


def wait_until(what, seconds: float = 60) -> bool:  # type: ignore[no-untyped-def]
    limit = time.monotonic() + seconds
    while not what() and time.monotonic() < limit:
        time.sleep(0.02)
    return bool(what())


def alive(pid: int) -> bool:
    """A zombie is not: nobody may be left to take note of its end."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if sys.platform != "linux":
    pytestmark = pytest.mark.skip(reason="looks at /proc")
