"""`minutes`: the epochs that fit into a time are decided once, and measuring them changes no bit of the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from selfpatch.api import fit_epochs
from selfpatch.api.pretrain import pretrain
from selfpatch.config.run import RunConfig
from selfpatch.training import factory, step_timing
from tests.helpers.command_line import differences, final_state, write_photos
from tests.helpers.tiny import tiny_config
from tests.helpers.workers import WorkerPool


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 22)  # 20 to train on: 5 steps of 4 an epoch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, 2.0)


def set_clock(monkeypatch: pytest.MonkeyPatch, per_step: float) -> None:
    """Set a clock by which every step takes `per_step` seconds, an evaluation 1, and nothing else any time."""
    now = SimpleNamespace(seconds=0.0, measured=0)

    def perf_counter() -> float:
        now.seconds += 1
        return per_step * now.seconds

    def monotonic() -> float:
        now.measured += 1
        return min(now.measured, 3)  # read at the start, before and after an evaluation, and once more

    monkeypatch.setattr(step_timing, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(fit_epochs, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr("selfpatch.api.pretrain.time", SimpleNamespace(monotonic=monotonic))


def config(photos: Path, out: Path, **settings: Any) -> Any:
    watch = {"evaluate_every": 1, "log_every": 1, "picture_images": 1}
    loader = {"held_out": 2, "workers": 0}
    return tiny_config(data=str(photos), out=str(out), watch=watch, loader=loader, device="cpu", **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("clock")
def test_measuring_changes_no_bit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is the one that has its number of epochs from the start, and its config.yaml says so."""
    timed = pretrain(config(photos, tmp_path / "timed", minutes=0.5, backbone={"drop_path": 0.2}))
    settings = yaml.safe_load((timed / "config.yaml").read_text())
    # Of 27.9 seconds 2 are gone: 10 steps of 2 seconds, evaluations after 0, 5 and 10 steps, and two more.
    assert (settings["epochs"], settings["minutes"]) == (2.0, None)
    assert "10 steps fit into 0.5 minutes at 2 images/s" in capsys.readouterr().out
    plain = pretrain(config(photos, tmp_path / "plain", epochs=settings["epochs"], backbone={"drop_path": 0.2}))
    assert final_state(timed)["step"] == 10
    assert differences(final_state(timed), final_state(plain)) == []


@pytest.mark.usefixtures("clock")
def test_epochs_are_the_limit_where_they_fit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pretrain(config(photos, tmp_path / "run", minutes=0.5, epochs=0.4))
    assert "all 0.4 epochs fit into 0.5 minutes at 2 images/s" in capsys.readouterr().out
    assert final_state(out)["step"] == 2


def test_no_more_steps_are_measured_than_the_epochs_have(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def timed_steps(*arguments: Any, count: int, **options: Any) -> Any:
        counts.append(count)
        return step_timing.timed_steps(*arguments, count=count, **options)

    monkeypatch.setattr(fit_epochs, "timed_steps", timed_steps)
    pretrain(config(photos, tmp_path / "run", minutes=525_600, epochs=0.6))
    assert counts == [3]


@pytest.mark.usefixtures("clock")
def test_too_little_time_is_refused_before_anything_is_made(photos: Path, tmp_path: Path) -> None:
    # Of 60 * 0.93 seconds a minute 2 are gone, a step takes 2, and evaluations before and after it and two more 4.
    with pytest.raises(ValueError, match=r"minutes is 0.1, .* no step fits: .* a step 2.0 s, .* at least 0.2 minutes"):
        pretrain(config(photos, tmp_path / "run", minutes=0.1))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_before_anything_is_measured(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("selfpatch.api.pretrain.fit_epochs", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="already has files in it"):
        pretrain(config(photos, tmp_path, minutes=1))


def test_processes_agree_on_the_epochs(pool: WorkerPool, photos: Path, tmp_path: Path) -> None:
    """By their own clocks 9 and 6 steps of 2 and 3 seconds would fit; those of the main process count."""
    fitted = pool.run(_fitted, config(photos, tmp_path / "run", minutes=0.5))
    assert fitted == 2 * [(9 / 5, None)]


def _fitted(rank: int, config: RunConfig) -> tuple[float | None, float | None]:
    """Return the epochs and minutes that are fitted on a process whose clock depends on its rank."""
    student_teacher, _ = factory.make_student_teacher(config)
    with pytest.MonkeyPatch.context() as patched:
        set_clock(patched, 2.0 + rank)
        fitted, _ = fit_epochs.fit_epochs(
            config, student_teacher, factory.open_training_data(config), torch.device("cpu"), started=0
        )
    return fitted.epochs, fitted.minutes
