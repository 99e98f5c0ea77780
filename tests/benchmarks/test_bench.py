"""The benchmarks: how they time, what they report, and that each runs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import timing
from benchmarks.memory import peak_memory
from benchmarks.report import Report, machine_facts
from benchmarks.running import PARTS
from benchmarks.scaling import BASE, GROWN, Cost, table
from benchmarks.step import StepBench, published_step
from benchmarks.timing import MIN_ROUNDS, Case, Timing, time_case
from selfpatch.cli.main import main
from selfpatch.config.run import RunConfig
from tests.helpers.command_line import write_photos
from tests.helpers.tiny import tiny_config

MEASURED = Timing(
    "a case", {"plain": [4.0, 8.0, 4.0], "fast": [2.0, 2.0, 1.0]}, items=8, unit="images", flops=16e9,
    peak_memory={"plain": 2**30, "fast": 2**29},
)  # fmt: skip


def test_ways_take_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def way(name: str, seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds

    case = Case("a case", {"plain": lambda: way("plain", 3.0), "fast": lambda: way("fast", 1.0)}, items=6)
    result = time_case(case, seconds=0.0)
    assert calls == ["plain", "fast"] * (1 + MIN_ROUNDS)
    assert result.seconds == {"plain": [3.0] * MIN_ROUNDS, "fast": [1.0] * MIN_ROUNDS}
    assert (result.rate("fast"), result.speedup("fast")) == (6.0, (3.0, 3.0, 3.0))


def test_the_second_of_two_calls_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], {"plain": 0, "fast": 0}
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def way(name: str) -> None:
        calls[name] += 1
        clock[0] += 10.0 if calls[name] % 2 == 0 else 1.0  # the first one warms up

    case = Case("a case", {name: partial(way, name) for name in calls}, second_of_two=True)
    assert time_case(case, seconds=0.0).seconds == {"plain": [1.0] * MIN_ROUNDS, "fast": [1.0] * MIN_ROUNDS}


def test_speed_is_compared_within_a_round() -> None:
    """The median of 2, 4 and 4, not the ratio of medians, which is 2."""
    assert MEASURED.speedup("fast") == (4.0, 3.0, 4.0)
    assert MEASURED.rate("plain") == 2.0


def test_a_report_shows_and_keeps_what_was_measured(tmp_path: Path) -> None:
    cost = Cost("base", 0.5, 1e9, 2**20)
    facts = machine_facts(torch.device("cpu"))
    report = Report([MEASURED], {"float32": 32e9, "bfloat16": 64e9}, facts, [cost])
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


@pytest.mark.parametrize("way", ["plain float32", "fast float32", "plain bfloat16", "fast bfloat16"])
@pytest.mark.parametrize("method", ["dino", "ibot", "moby"])
def test_a_step_of_each_way_trains(method: str, way: str) -> None:
    bench = StepBench(tiny_config(method=method), torch.device("cpu"))
    before = [p.clone() for p in bench.student_teacher.teacher.parameters()]
    bench.step(way)
    assert any(not torch.equal(p, b) for p, b in zip(bench.student_teacher.teacher.parameters(), before, strict=True))
    assert bench.flops() > 0


def test_the_step_is_the_published_one() -> None:
    config = published_step()
    crops = config.crops
    assert (crops.global_size, crops.num_local, crops.local_size) == (224, 8, 96)
    assert config.components["dino"]["num_prototypes"] == 65536


def test_all_that_grows_is_a_configuration() -> None:
    for settings in GROWN.values():
        RunConfig().override(BASE).override(settings)


def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, sentence in [
        (["speed"], f"there is no benchmark 'speed'; use some of: {', '.join(PARTS)}"),
        (["ops", "--seconds", "0"], "use more than 0 s"),
        (["loader", "--data", str(tmp_path)], "no images"),
    ]:
        assert main(["bench", *arguments, "--device", "cpu"]) == 2
        assert sentence in capsys.readouterr().err


def make_ones(millions: int) -> object:
    return lambda: torch.ones(millions * 2**18)  # so many MiB


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call() -> None:
    """Whatever this process holds."""
    held = torch.ones(2**27)
    small, large = (peak_memory(make_ones, size, device=torch.device("cpu")) for size in (10, 210))
    assert 180 * 2**20 < large - small < 220 * 2**20
    assert large < held.nbytes


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    out = tmp_path / "bench.json"
    assert main(f"bench ops loader --data {photos} --seconds 0.05 --device cpu --out {out}".split()) == 0
    cases = {case["name"]: case for case in json.loads(out.read_text())["cases"]}
    assert {"AdamW", "loss of all patches, 4,096 prototypes", "read, draw, render", "render"} <= set(cases)
    assert all(list(case["ways"]) for case in cases.values())
