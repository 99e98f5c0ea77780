"""TensorBoard events beside metrics.jsonl."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import pytest
from PIL import Image

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.training.loggers.metrics import MetricsLogger


def new_log(folder: Path) -> MetricsLogger:
    return MetricsLogger(RunDirectory(folder, {"seed": 3, "crops": {"num_local": 2}}), LoggingConfig())


@pytest.fixture
def log(tmp_path: Path) -> MetricsLogger:
    return new_log(tmp_path)


def test_tensorboard_shows_the_rewound_run(log: MetricsLogger, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sheet = tmp_path / "sheet.png"
    Image.new("RGB", (5, 4)).save(sheet)
    for step in (10, 20, 30):
        log.record(step, loss={"loss": float(step)}, pictures={"pictures/patch_features": sheet})
    log.close()
    resumed = new_log(tmp_path)
    resumed.rewind(20)
    resumed.record(20, loss={"loss": 7.0})
    resumed.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss/loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss/loss")] == [(10, 10.0), (20, 7.0)]
    (image,) = events.Images("pictures/patch_features")
    assert (image.step, image.width, image.height) == (10, 5, 4)
    (settings,) = events.Tensors("settings/text_summary")
    assert b"num_local: 2" in settings.tensor_proto.string_val[0]
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"crops.num_local" in start, "the tab of hyperparameters lists the settings"
    assert b"eval/view_matching" in events.SummaryMetadata("_hparams_/experiment").plugin_data.content


def test_training_goes_on_without_tensorboard(
    log: MetricsLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="no TensorBoard events"):
        log.record(1, loss={"loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.record(2, loss={"loss": 1.0})
        log.close()
    assert len(log.rows()) == 2


def test_errors_in_the_thread_of_tensorboard_print_no_traceback(
    log: MetricsLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call of the writer raises them, which a warning tells; other threads are none of its business."""
    printed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: printed.append(type(failed.thread).__name__))
    log.record(1, loss={"loss": 1.0})
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
