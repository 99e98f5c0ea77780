"""Comparison with other packages: logs, turns, and one sentence for whatever is missing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers.config import MODULES, PeersConfig
from benchmarks.peers.pairs import WARM_UP, Contestant, Record, _active, race
from benchmarks.peers.selfpatch_dino import config_of
from benchmarks.peers.task import StepLog, Task, read_task

HEAD = {"versions": {"torch": "2"}, "threads": 1}
TRAINS = """
import json, sys, time
log = open(json.loads(sys.argv[1])["log"], "a")
print(json.dumps({"versions": {"it": "1"}, "threads": 1}), file=log, flush=True)
for step in range(1, 10_000):
    time.sleep(0.01)
    print(json.dumps({"step": step, "time": time.monotonic(), "cpu": time.process_time()}), file=log, flush=True)
"""
"""A package that takes a step each hundredth of a second."""


@pytest.fixture
def task(tmp_path: Path) -> Callable[[str], Task]:
    def make(name: str) -> Task:
        folder = tmp_path / name
        folder.mkdir()
        data = str(tmp_path / "images")
        return Task("training", data, "vit_small", 4, 1, "float32", 64, "cpu", str(folder), str(folder / "log.jsonl"))

    return make


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_a_log_is_read_while_it_grows() -> None:
    assert Record.parse("") is None
    assert Record.parse('{"versions": {') is None
    record = Record.parse(lines(HEAD, {"step": 1, "time": 2.0, "cpu": 1.0}) + '{"step": 2, "ti')
    assert record == Record({"torch": "2"}, 1, [2.0], [1.0])


@pytest.mark.parametrize(
    "text", ["warning: text of a library\n", lines({"step": 1}), lines(HEAD, {"step": 2, "time": 1})]
)
def test_a_damaged_log_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the log of steps is damaged"):
        Record.parse(text)


def test_a_step_log_follows_optimizers(task: Callable[[str], Task], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = task("ours")
    monkeypatch.setattr(sys, "argv", ["it", asked.to_json()])
    assert read_task() == asked
    log = StepLog(asked, "timm")
    handle = log.follow_optimizers()
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    for _ in range(3):
        weight.sum().backward()
        optimizer.step()
    handle.remove()
    record = Record.parse(Path(asked.log).read_text())
    assert record is not None
    assert record.versions.keys() == {"timm", "torch"}
    assert len(record.times) == 3
    assert record.times == sorted(record.times)
    assert record.cpu == sorted(record.cpu)


def test_time_in_which_a_process_is_stopped_does_not_count() -> None:
    turns = [(10.0, 12.0), (20.0, 23.0)]
    assert [_active(turns, t) for t in (10.0, 11.5, 12.0, 15.0, 21.0, 23.0, 30.0)] == [0, 1.5, 2, 2, 3, 5, 5]


def test_processes_take_turns(task: Callable[[str], Task]) -> None:
    command = [sys.executable, "-S", "-c", TRAINS]
    with Contestant("a", command, task("a"), 60) as a, Contestant("b", command, task("b"), 60) as b:
        before = len(a.record().times)
        time.sleep(0.1)
        assert len(a.record().times) == before  # it is stopped
        result = race({"a": a, "b": b}, rounds=3, steps=4, clock="wall")
    assert all(end <= begin for (_, end), (begin, _) in zip(a.turns[1:], b.turns[1:], strict=True))
    for name in "ab":
        assert len(result["seconds"][name]) == 3
        assert min(result["seconds"][name]) > 0
        assert len(result["records"][name].times) >= WARM_UP + 12
    assert a._process.poll() is not None


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("import sys; print('no such model', file=sys.stderr); sys.exit(3)", "x ended with code 3: no such model"),
        ("import time; time.sleep(60)", "x took fewer than 2 steps in 0.2 s; raise --patience"),
    ],
)
def test_a_process_that_takes_no_steps_is_told_of(script: str, sentence: str, task: Callable[[str], Task]) -> None:
    with (
        pytest.raises(ValueError, match=sentence),
        Contestant("x", [sys.executable, "-S", "-c", script], task("x"), 0.2 if "sleep" in script else 60),
    ):
        pass


def test_what_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.python_of("selfpatch", str(tmp_path)) == sys.executable
    monkeypatch.setattr(sys, "argv", ["peers", "--venvs", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit) as left:
        peers.main()
    assert left.value.code == 2
    assert f"there is no environment {tmp_path / 'lightly'}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no-such-package is not installed in .*pip install no-such-package"):
        peers.python_of("no-such-package", None)


def test_loaders_without_a_public_function_and_emulated_types_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "emulates", lambda dtype, device: dtype is torch.bfloat16)
    found = list(peers.cases(PeersConfig(peers=("lightly", "lightly-train")), torch.device("cpu")))
    assert found == [
        ("lightly", "loader", "float32"), ("lightly", "training", "float32"), ("lightly-train", "training", "float32")
    ]  # fmt: skip


def test_every_package_has_a_module_and_ours_its_settings(task: Callable[[str], Task]) -> None:
    assert all((Path(peers.__file__).parent / f"{module}.py").is_file() for module in MODULES.values())
    config = config_of(task("ours"))
    assert (config.model, config.batch_size, config.precision, config.loader.workers) == ("vit_small", 4, "fp32", 1)
    assert config.optimizer.base_lr * config.batch_size / 256 == pytest.approx(1e-5)
    assert config.crops.num_local == 8
