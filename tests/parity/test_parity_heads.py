"""Bundles of iBOT's heads hold, and a deviation in what is shared, or in how the teacher starts, is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from selfpatch.methods.image.ibot import IBOT
from tests.parity import replay
from tests.parity.check import all_hold

TRAJECTORIES = {"ibot_teacher_shared": (False, True), "ibot_separate": (False, False), "sere_vitb_heads": (True, True)}
"""Bundle -> its flags `shared_head` and `shared_head_teacher`."""


def holds(bundle: Path) -> bool:
    """A replay that refuses a bundle does not hold either."""
    try:
        return all_hold(replay(bundle))
    except ValueError:
        return False


def changed(bundle: Path, folder: Path, file: str, change: Any) -> Path:
    """Copy a bundle and apply `change` to the content of one JSON file."""
    folder.mkdir()
    for source in bundle.iterdir():
        shutil.copyfile(source, folder / source.name)
    record = json.loads((folder / file).read_text())
    change(record)
    (folder / file).write_text(json.dumps(record))
    return folder


def test_the_facts_hold(golden_dir: Path) -> None:
    assert holds(golden_dir / "released" / "ibot_head_facts")


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_it_holds(full_golden_dir: Path, name: str) -> None:
    checks = list(replay(full_golden_dir / "released" / name))
    assert all_hold(checks), "\n".join(str(check) for check in checks if not check.holds)


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("flags", [(True, True), (False, False), (False, True), (True, False)])
def test_other_flags_are_noticed(full_golden_dir: Path, tmp_path: Path, name: str, flags: tuple[bool, bool]) -> None:
    def change(record: dict[str, Any]) -> None:
        del record["facts"]  # the numbers alone must show it
        record["config"]["shared_head"], record["config"]["shared_head_teacher"] = flags

    bundle = changed(full_golden_dir / "released" / name, tmp_path / name, "trajectory.json", change)
    assert holds(bundle) == (flags == TRAJECTORIES[name])


def test_a_teacher_that_starts_with_the_prototypes_of_image_tokens_is_noticed(
    full_golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IBOT, "start_teacher", lambda self, heads: None)
    checks = replay(full_golden_dir / "released" / "ibot_teacher_shared")
    assert {"first teacher", "head: teacher_last_layer_starts_as"} <= {
        check.name.partition(" (")[0] for check in checks if not check.holds
    }


def test_facts_of_such_a_teacher_are_noticed(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IBOT, "start_teacher", lambda self, heads: None)
    assert not holds(golden_dir / "released" / "ibot_head_facts")


@pytest.mark.parametrize("pair", range(4))
def test_every_fact_counts(golden_dir: Path, tmp_path: Path, pair: int) -> None:
    bundle = golden_dir / "released" / "ibot_head_facts"
    flags, facts = list(json.loads((bundle / "facts.json").read_text()).items())[pair]
    for fact in facts:
        wrong = not facts[fact] if isinstance(facts[fact], bool) else [*facts[fact], 1]

        def change(record: dict[str, Any], fact: str = fact, wrong: Any = wrong) -> None:
            record[flags] = {"loss_center_sizes": record[flags]["loss_center_sizes"], fact: wrong}

        if fact != "loss_center_sizes":
            assert not holds(changed(bundle, tmp_path / f"{pair}{fact}", "facts.json", change)), fact
