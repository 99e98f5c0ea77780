"""Report of benchmarks as tables and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.report import Report, describe_machine
from benchmarks.scaling import Cost, table
from benchmarks.timing import Timing
from selfpatch.core.machine import device_name, num_cores

MEASURED = Timing(
    "a case", {"plain": [4.0, 8.0, 4.0], "fast": [2.0, 2.0, 1.0]}, items=8, unit="images", flops=16e9,
    peak_memory={"plain": 2**30, "fast": 2**29},
)  # fmt: skip


def test_a_report_shows_and_keeps_what_was_measured(tmp_path: Path) -> None:
    cost = Cost("base", 0.5, 1e9, 2**20)
    machine = describe_machine(torch.device("cpu"))
    report = Report([MEASURED], {"float32": 32e9, "bfloat16": 64e9}, machine, [cost])
    report.save(tmp_path / "bench.json")
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["cases"][0]["ways"]["fast"]["items_per_second"] == 4.0
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["costs"][0]["peak_bytes"] == 2**20
    (shown,) = report.tables()
    cells = [list(column.cells) for column in shown.columns]
    assert cells[0] == ["plain", "fast"]
    assert cells[6] == ["12%", "25%"]  # 4 and 8 of 32 GFLOP/s
    assert cells[7] == ["1,024 MiB", "512 MiB"]
    grown = table([cost, replace(cost, name="grown", seconds=1.0)])
    assert list(grown.columns[2].cells) == ["1.00", "2.00"]


def test_the_description_names_what_speed_depends_on() -> None:
    described = describe_machine(torch.device("cpu"))
    assert {"python", "selfpatch", "torch", "processor", "cores", "threads", "device"} <= set(described)
    assert described["torch"] == torch.__version__
    assert described["processor"] == device_name(torch.device("cpu")) != ""
    assert described["cores"] == num_cores() >= 1
