"""Weights & Biases and MLflow: what they hold of a run, also of one that was killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

import selfpatch
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.training.loggers.metrics import MetricsLogger
from selfpatch.training.loggers.registry import EXTRAS, LOGGERS, require_loggers

SETTINGS = {"seed": 3, "crops": {"num_local": 2, "global_scale": [0.25, 1.0]}, "loss_weights": {}, "out": None}


def record_and_resume(folder: Path, name: Any) -> None:
    """Record steps 1 and 2, lose the second by a kill, and record it again together with step 3."""
    sheet = folder / "sheet.png"
    Image.new("RGB", (5, 4)).save(sheet)
    for first in (1, 2):
        log = MetricsLogger(RunDirectory(folder, SETTINGS), LoggingConfig(loggers=(name,), project="test"))
        log.rewind(first)
        for step in range(first, first + 2):
            log.record(step, loss={"loss": step / 2}, meters={"rank": math.nan})
            log.record(step, eval={"knn_top1": 0.5}, pictures={"pictures/patch_features": sheet})
        log.close()


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("unset")
def test_wandb_is_offline_and_continues_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    record_and_resume(tmp_path, "wandb")
    wandb.teardown()  # its process writes the rest
    identifier = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    folders = sorted((tmp_path / "wandb").glob("*run-*"))
    assert [folder.name.partition("run-")[0] for folder in folders if not folder.is_symlink()] == ["offline-"] * 2
    assert all(folder.name.endswith(identifier) for folder in folders if not folder.is_symlink())
    rows, config = history(folders)
    losses = [(row["step"], row["loss/loss"]) for row in rows if "loss/loss" in row]
    assert losses == [(1, 0.5), (2, 1.0), (3, 1.5)], "no step is there twice"
    sheets = [row for row in rows if "eval/knn_top1" in row]
    assert [(row["step"], row["eval/knn_top1"]) for row in sheets] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    sizes = [tuple(row[f"pictures/patch_features/{side}"] for side in ("width", "height")) for row in sheets]
    assert sizes == [(5, 4)] * 3
    assert config["crops"] == SETTINGS["crops"]


def history(folders: list[Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the configuration in the files of offline runs."""
    from wandb.proto import wandb_internal_pb2

    rows, config = [], {}
    for file in (file for folder in folders if not folder.is_symlink() for file in folder.glob("*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            if record.WhichOneof("record_type") == "run":
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log behind a header of 7 bytes, in blocks of 32 KiB."""
    position, record = 7, b""
    while position < len(content):
        left = 32768 - position % 32768
        if left < 7:  # padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.usefixtures("unset")
def test_mlflow_has_its_store_in_the_run_and_continues_one_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    record_and_resume(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("test")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == (tmp_path.name, "FINISHED")
    assert run.data.params["crops.global_scale"] == "[0.25, 1.0]"
    losses = client.get_metric_history(run.info.run_id, "loss/loss")
    assert sorted((metric.step, metric.value) for metric in losses) == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures/patch_features")] == [
        "pictures/patch_features/sheet.png"
    ]


class Failing:
    """A logger whose first record works, and whose second does not."""

    records, rewinds = "records of a server", False
    calls: ClassVar[list[int]] = []

    def start(self, run: Any) -> None:
        assert run.settings == SETTINGS

    def log(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        self.calls.append(step)
        if step == 2:
            raise ConnectionError("the server is gone")

    def close(self) -> None:
        raise AssertionError("it has failed before")


def test_a_run_goes_on_without_a_logger_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS, "wandb", Failing)
    log = MetricsLogger(RunDirectory(tmp_path, SETTINGS), LoggingConfig(loggers=("wandb",)))
    log.record(1, loss={"loss": 1.0})
    with pytest.warns(UserWarning, match=r"no records of a server \(the server is gone\); metrics.jsonl holds every"):
        log.record(2, loss={"loss": 1.0})
    log.record(3, loss={"loss": 1.0})
    log.close()
    assert Failing.calls == [1, 2]
    assert [row["step"] for row in log.rows()] == [1, 2, 3]


def test_a_logger_that_fails_to_close_leaves_the_others_to_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(Failing):
        closed: ClassVar[list[str]] = []

        def close(self) -> None:
            self.closed.append("mlflow")

    monkeypatch.setitem(LOGGERS, "wandb", Failing)
    monkeypatch.setitem(LOGGERS, "mlflow", Closing)
    log = MetricsLogger(RunDirectory(tmp_path, SETTINGS), LoggingConfig(loggers=("mlflow", "wandb")))
    log.record(1, loss={"loss": 1.0})
    with pytest.warns(UserWarning, match="no records of a server"):
        log.close()
    assert Closing.closed == ["mlflow"]


def test_damaged_identifiers_begin_a_new_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Failing):
        def start(self, run: Any) -> str:
            assert run.id is None
            return "new"

    monkeypatch.setitem(LOGGERS, "mlflow", Named)
    (tmp_path / "loggers.json").write_text('{"mlflow": 5')
    log = MetricsLogger(RunDirectory(tmp_path, SETTINGS), LoggingConfig(loggers=("mlflow",)))
    log.record(1, loss={"loss": 1.0})
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"mlflow": "new"}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_logger_that_is_not_installed_is_refused_before_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = (
        rf"logging.loggers names {name}, which is not installed; run `pip install 'selfpatch\[{name}\]'`, or leave"
    )
    with pytest.raises(ValueError, match=sentence):
        selfpatch.pretrain(out=str(tmp_path / "run"), logging={"loggers": [name]}, device="cpu")
    assert not (tmp_path / "run").exists()
    require_loggers(LoggingConfig())


def test_each_logger_is_named_once() -> None:
    with pytest.raises(ValueError, match="names one twice"):
        LoggingConfig(loggers=("mlflow", "mlflow"))
