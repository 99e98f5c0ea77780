"""TensorBoard events beside metrics.jsonl."""

from __future__ import annotations

import sys
import threading
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


def test_errors_in_the_thread_of_tensorboard_print_no_traceback(
    log: MetricsLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call of the writer raises them, which a warning tells; other threads are none of its business."""
    printed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: printed.append(type(failed.thread).__name__))
    log.record({"step": 1, "loss": 1.0})
    log.close()

    def fail() -> None:
        raise OSError("no space left")

    class Writer(threading.Thread):
        __module__ = "tensorboard.summary.writer"

    for kind in (Writer, threading.Thread):
        thread = kind(target=fail)
        thread.start()
        thread.join()
    assert printed == ["Thread"]
