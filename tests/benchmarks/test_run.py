"""Benchmarks as a command: input errors, and a report of every case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import run, step
from benchmarks.config import PARTS, BenchConfig
from selfpatch.cli.main import main


def test_wrong_input_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, sentence in [
        (["speed"], f"there is no benchmark 'speed'; use some of: {', '.join(PARTS)}"),
        (["ops", "--seconds", "0"], "use a number above 0"),
        (["loader", "--data", str(tmp_path)], "no images"),
    ]:
        assert main(["bench", *arguments, "--device", "cpu"]) == 2
        assert sentence in capsys.readouterr().err


def test_an_emulated_type_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {torch.float32: 2e9, torch.bfloat16: None}
    monkeypatch.setattr(run, "matrix_ceiling", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(run, "slowdown", lambda dtype, device: 27.0)
    monkeypatch.setattr(step, "emulates", lambda dtype, device: dtype is torch.bfloat16)
    report = run.run_benchmarks(BenchConfig(parts=(), device="cpu"))
    assert report.ceilings == {"float32": 2e9}
    printed = " ".join(capsys.readouterr().out.split())
    assert "matrix products: float32 2 GFLOP/s" in printed
    assert "bfloat16 is left out: this device emulates it, 27 times slower than float32" in printed
    assert step.usable_variants(torch.device("cpu")) == ("plain float32", "fast float32")


@pytest.mark.slow
def test_the_command_reports_every_case(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(f"bench ops --seconds 0.05 --device cpu --out {out}".split()) == 0
    cases = {case["name"]: case for case in json.loads(out.read_text())["cases"]}
    assert {"AdamW", "loss of all patches, 4,096 prototypes"} <= set(cases)
    assert all(list(case["ways"]) for case in cases.values())
