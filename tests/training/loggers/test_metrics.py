"""metrics.jsonl: what is written, and what is left of it after a kill and a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.training.loggers.metrics import MetricsLogger, read_metrics, read_numbers


def new_log(folder: Path) -> MetricsLogger:
    return MetricsLogger(RunDirectory(folder, {}), LoggingConfig(loggers=()))


@pytest.fixture
def log(tmp_path: Path) -> MetricsLogger:
    return new_log(tmp_path)


def test_rows_come_back_as_valid_json(log: MetricsLogger, tmp_path: Path) -> None:
    log.record(1, loss={"loss": 0.1}, schedule={"lr": 1e-9, "größer": 2})
    log.record(2, loss={"loss": math.nan}, meters={"grad_norm": -math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert [json.loads(line, parse_constant=refuse) for line in lines] == log.rows()
    assert log.rows() == [
        {"step": 1, "loss": 0.1, "lr": 1e-9, "größer": 2},
        {"step": 2, "loss": None, "grad_norm": None},
    ]


def test_rewind_drops_what_comes_again(log: MetricsLogger, tmp_path: Path) -> None:
    assert log.rows() == []
    for step in (0, 10, 20, 20, 30):
        log.record(step, loss={"loss": 1 / (step + 3)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 35, "lo')
    log.close()
    resumed = new_log(tmp_path)
    assert [row["step"] for row in resumed.rows()] == [0, 10, 20, 20, 30]
    resumed.rewind(20)
    resumed.record(20, loss={"loss": 5.0})
    resumed.close()
    assert resumed.rows() == [{"step": 0, "loss": 1 / 3}, {"step": 10, "loss": 1 / 13}, {"step": 20, "loss": 5.0}]
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_lines_that_are_no_records_are_skipped(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 2.5}', "", "garbage", '{"loss": 1}', "[1]", "5", '{"step": "2"}', '{"step": true}',
        '{"step": 1.5}', '{"step": NaN}', "[" * 5000, '{"step": 3, "loss": NaN, "lr": "x", "n": [1], "big": 1e999}',
        '{"step": 4, "lo',
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\xfe")
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 2.5},
        {"step": 3, "loss": None, "lr": "x", "n": None, "big": None},
    ]
    assert read_numbers(tmp_path)[1]["lr"] is None
