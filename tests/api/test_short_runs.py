"""Warm-ups and frozen epochs of runs that are much shorter than their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfpatch.api.short_runs import fit_schedules
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.training.optim import Schedule


def of_recipe(recipe: str, **settings: Any) -> RunConfig:
    return load_recipe(recipe).override(settings)


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected", "said"),
    [
        ("small-cpu", 1, {"warmup_epochs": 1 / 13}, "1 epoch in place of 26 epochs: warm-up of the learning rate from"),
        ("small-cpu", 4, {"warmup_epochs": 2}, None),
        ("dinov2-vits14", 50, {"warmup_epochs": 10, "warmup_teacher_temp_epochs": 15}, "temperature from 30 to 15"),
        (
            "dinov2-vits14", 1,
            {"warmup_epochs": 0.1, "warmup_teacher_temp_epochs": 0.3, "freeze_last_layer_epochs": 0.01},
            "10 to 0.1, warm-up of the teacher's temperature from 30 to 0.3, frozen last layer from 1 to 0.01",
        ),
        ("continue-pretraining", 1.5, {"freeze_backbone_epochs": 0.05}, "frozen backbone from 1 to 0.05"),
    ],
)  # fmt: skip
def test_phases_keep_their_share(recipe: str, epochs: float, expected: dict[str, float], said: str | None) -> None:
    config, lines = fit_schedules(of_recipe(recipe, epochs=epochs))
    assert {name: getattr(config.optimizer, name) for name in expected} == pytest.approx(expected)
    assert lines == [] if said is None else (len(lines) == 1 and said in lines[0])


def test_the_rate_of_a_short_run_peaks_early_and_falls() -> None:
    config, _ = fit_schedules(of_recipe("small-cpu", epochs=2))
    schedule = Schedule(config.optimizer, epochs=2, steps_per_epoch=26, batch_size=64)
    rates = [schedule(step).lr for step in range(schedule.total_steps)]
    assert rates.index(max(rates)) == 3, "2 of 26 epochs of warm-up are 4 of these 52 steps"
    assert rates[-1] < max(rates) / 100


def test_what_was_asked_for_stays_with_a_note() -> None:
    asked = of_recipe("small-cpu", epochs=3, optimizer={"warmup_epochs": 1.6, "freeze_last_layer_epochs": 2})
    config, lines = fit_schedules(asked)
    assert config == asked
    assert lines == [
        "note: the learning rate rises for 1.6 of 3 epochs; shorten this, e.g. with --optimizer.warmup-epochs 0.3",
        "note: the last layer is frozen for 2 of 3 epochs; shorten this, e.g. with "
        "--optimizer.freeze-last-layer-epochs 0.3",
    ]


def test_a_length_that_is_named_stays_where_the_recipe_has_the_same() -> None:
    config, lines = fit_schedules(of_recipe("dinov2-vits14", epochs=3), named={"warmup_epochs"})
    assert config.optimizer.warmup_epochs == 10
    assert config.optimizer.warmup_teacher_temp_epochs == pytest.approx(0.9)
    assert "the learning rate rises for 10 of 3 epochs; shorten this" in lines[-1]
    assert "warm-up of the learning rate" not in lines[0]


def test_defaults_are_the_measure_without_a_recipe() -> None:
    config, (line,) = fit_schedules(RunConfig(epochs=3))
    assert config.optimizer.warmup_epochs == pytest.approx(0.1)
    assert line == "note: shortened for 3 epochs in place of 300 epochs: warm-up of the learning rate from 10 to 0.1"


def test_a_recipe_that_is_all_warm_up_is_left_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "warm.yaml"
    recipe.write_text("extends: small-cpu\nepochs: 2\n")
    config, (line,) = fit_schedules(load_recipe(str(recipe)))
    assert config.optimizer.warmup_epochs == 2
    assert "rises for 2 of 2 epochs" in line


def test_a_warm_up_between_equal_temperatures_is_not_told() -> None:
    equal = {"warmup_epochs": 0, "warmup_teacher_temp": 0.04, "teacher_temp": 0.04, "warmup_teacher_temp_epochs": 30}
    assert fit_schedules(RunConfig(epochs=3, optimizer=equal))[1] == []


@pytest.mark.parametrize("text", [None, "epochs: no number\n"])
def test_a_recipe_that_can_no_longer_be_read_ends_no_run(tmp_path: Path, text: str | None) -> None:
    """The settings of an earlier run name it, and hold all of its values."""
    recipe = tmp_path / "own.yaml"
    recipe.write_text("extends: small-cpu\n")
    config = load_recipe(str(recipe))
    recipe.unlink() if text is None else recipe.write_text(text)
    assert fit_schedules(config) == (config, [])
    short = config.override({"epochs": 1})
    assert fit_schedules(short)[0] == short
    assert "rises for 2 of 1 epoch" in fit_schedules(short)[1][0]
