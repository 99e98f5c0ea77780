"""TensorBoard events beside metrics.jsonl."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from selfpatch.training.loggers.metrics import MetricsLogger


@pytest.fixture
def log(tmp_path: Path) -> MetricsLogger:
    return MetricsLogger(tmp_path)


def test_tensorboard_shows_the_rewound_run(log: MetricsLogger, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step in (10, 20, 30):
        log.record({"step": step, "loss": float(step), "note": "text", "missing": None})
    log.close()
    resumed = MetricsLogger(tmp_path)
    resumed.rewind(20)
    resumed.record({"step": 20, "loss": 7.0})
    resumed.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 10.0), (20, 7.0)]


def test_training_goes_on_without_tensorboard(
    log: MetricsLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="no TensorBoard events"):
        log.record({"step": 1, "loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.record({"step": 2, "loss": 1.0})
        log.close()
    assert len(log.rows()) == 2
