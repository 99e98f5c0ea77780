"""Equal training time: how the epochs of an arm follow from timed steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfpatch.experiments import timing
from selfpatch.experiments.jobs import WorkerSlot
from selfpatch.experiments.spec import Study, read_study
from selfpatch.training import step_timing
from selfpatch.training.trainer import training_step
from tests.helpers.tiny_study import FROM_WEIGHTS, PLAN, write_study, write_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


EQUAL = {
    "DINO": {"objective": "none"},
    "both": {"objective": "selfpatch", "equal_time": "DINO"},
    "large": {"objective": "selfpatch", "batch_size": 8, "equal_time": "DINO"},
}


def test_equal_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs by the times of an epoch, which are measured once and never again; but with other settings."""
    file, slot = tmp_path / "timing.json", WorkerSlot("cpu", 1)

    def time(study: Study, *seconds: float) -> None:
        monkeypatch.setattr(timing, "epoch_seconds", lambda configs, slot: seconds)
        for arm in timing.untimed(study, file):
            assert timing.time_arm(arm, slot, study=study, out=tmp_path) == []

    two = {name: EQUAL[name] for name in ("DINO", "both")}
    study = read_study(write_study(folder, arms=two), folder)
    time(study, 3.0, 2.0)
    assert timing.equal_time_epochs(study, file) == {"both": pytest.approx(4 * 2 / 3, abs=1e-3)}
    study = read_study(write_study(folder, arms=EQUAL, settings={**PLAN["settings"], "epochs": 8}), folder)
    time(study, 8.0, 2.0)
    assert timing.equal_time_epochs(study, file) == {"both": pytest.approx(8 * 2 / 3, abs=1e-3), "large": 2.0}
    study = read_study(write_study(folder, arms={**two, "both": {**two["both"], "selfpatch": {"k": 2}}}), folder)
    assert [arm.name for arm in timing.untimed(study, file)] == ["both"]


def test_moved_weights_and_newer_settings_are_not_timed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epochs of a study that continues stay, or its jobs would be refused."""
    weights, file = Path(write_weights(tmp_path)), tmp_path / "timing.json"
    path = write_study(folder, **FROM_WEIGHTS, arms={name: EQUAL[name] for name in ("DINO", "both")})
    monkeypatch.setattr(timing, "epoch_seconds", lambda configs, slot: (3.0, 2.0))
    study = read_study(path, folder, weights=str(weights))
    timing.time_arm(study.arms[1], WorkerSlot("cpu", 1), study=study, out=tmp_path)
    moved = weights.rename(tmp_path / "moved.safetensors")
    study = read_study(path, folder, weights=str(moved))
    entries = json.loads(file.read_text())
    for run in entries["both"]["timed"]:
        del run["optimizer"]["head_lr_scale"]
    file.write_text(json.dumps(entries))
    assert timing.untimed(study, file) == []
    moved.write_bytes(moved.read_bytes() + b"other")
    assert [arm.name for arm in timing.untimed(study, file)] == ["both"]


@pytest.mark.parametrize("text", ["", "[1]", "5", '{"both": 3}', '{"both": {}}', '{"both": {"ratio": 2}}'])
def test_what_is_no_record_of_times_is_not_read_as_one(folder: Path, tmp_path: Path, text: str) -> None:
    study = read_study(write_study(folder, arms={name: EQUAL[name] for name in ("DINO", "both")}), folder)
    (tmp_path / "timing.json").write_text(text)
    assert [arm.name for arm in timing.untimed(study, tmp_path / "timing.json")] == ["both"]


@pytest.mark.parametrize(("threads", "name"), [(1, "process_time"), (2, "perf_counter")])
def test_times_of_epochs(threads: int, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps of both runs take turns, each on batches of its own; an epoch of large batches has fewer of them."""
    sizes: list[int] = []
    clock = iter(range(10_000))

    def noted(model: Any, batches: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(sum(len(views.global_crops[0]) for views in batches))
        return training_step(model, batches, *rest, **options)

    monkeypatch.setattr(step_timing, "training_step", noted)
    monkeypatch.setattr(step_timing.time, name, lambda: next(clock))
    small = replace(read_study(write_study(folder), folder).arms[0].config, data=str(folder / "photos"))
    seconds = timing.epoch_seconds([small, replace(small, batch_size=8)], WorkerSlot("cpu", threads))
    assert sizes == [4, 8] * (step_timing.WARM_UP + timing.STEPS)
    assert seconds == [20 // 4, 20 // 8], "every step takes one second of this clock"


def test_a_training_of_fewer_steps_than_are_timed(folder: Path) -> None:
    config = replace(read_study(write_study(folder), folder).arms[0].config, data=str(folder / "photos"))
    short = replace(config, epochs=0.4, optimizer=replace(config.optimizer, warmup_epochs=0.4))  # two steps of warm-up
    assert timing.epoch_seconds([short], WorkerSlot("cpu", 1))[0] > 0
