"""Settings of detection: what is refused, and the learning rate of the presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.evaluate import evaluate
from tests.helpers.detect_data import (
    QUICK,
    tiny_encoder,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drop_path", 1.0), ("drop_path", -0.1), ("warmup_steps", -1), ("weight_decay", -0.1), ("clip", -1.0),
        ("lr", float("nan")), ("epochs", float("inf")), ("pyramid", "none"), ("heads", "x"), ("augmentation", "x"),
        ("limit", 0),
    ],
)  # fmt: skip
def test_settings_that_make_no_training_are_told(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; use"):
        DetectionConfig.from_settings({"preset": "small", name: value})


@pytest.mark.parametrize("name", ["seed", "workers", "max_pictures"])
def test_numbers_below_0_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; use 0 or more"):
        evaluate(tiny_encoder(), tmp_path / "nowhere", DetectionConfig.from_settings({**QUICK, name: -1}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"short_sides": ()}, "short_sides is"),
        ({"decay_at": (8.0,)}, r"decay_at\[0\] is"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_settings_out_of_range_are_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionConfig(**given)
    with pytest.raises(ValueError, match="preset is 'x'; use one of"):
        DetectionConfig.from_settings({"preset": "x"})


def test_the_learning_rate_follows_the_preset() -> None:
    config = DetectionConfig(batch_size=16)
    assert config.scaled_lr == pytest.approx(1e-4)
    assert [config.lr_factor(step, 12000) for step in (1000, 7999, 8000, 11000)] == pytest.approx([1, 1, 0.1, 0.01])
    assert config.lr_factor(0, 12000) == pytest.approx(0.001)
