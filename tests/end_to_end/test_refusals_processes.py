"""Two processes train, and one of them refuses: its sentence is told, once, and nothing blocks the next try."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import TINY, environment, program, write_photos
from tests.helpers.warm_fork import warm_server

SENTENCE = "the disk of this machine lacks the images; copy them"


def refusing(function: Any, rank: str) -> Any:
    def refuse(*arguments: Any, **options: Any) -> Any:
        if os.environ.get("RANK") == rank:
            raise ValueError(SENTENCE)
        return function(*arguments, **options)

    return refuse


def refuse_before_the_group(arguments: Sequence[str], rank: str) -> int:
    from selfpatch.api import first_checks

    first_checks.load_recipe = refusing(first_checks.load_recipe, rank)
    return program(arguments)


def refuse_within_the_run(arguments: Sequence[str], rank: str) -> int:
    from selfpatch.training import factory

    factory.move_to_device = refusing(factory.move_to_device, rank)
    return program(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refuse", "rank"), [(refuse_before_the_group, "1"), (refuse_within_the_run, "0"), (refuse_within_the_run, "1")]
)
def test_the_process_that_refuses_is_heard(refuse: Any, rank: str, tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 24), tmp_path / "run"
    words = ["torchrun", "2", "pretrain", *TINY, "--data", str(photos), "--out", str(out), "--epochs", "1"]
    done = warm_server().run(refuse, words, rank, environment=environment(tmp_path / "cache"), timeout=60)
    assert done.stderr.count(f"selfpatch: {SENTENCE}\n") == 1
    assert "Traceback" not in done.stderr
    assert not out.exists(), "it would block the next try"
    assert done.returncode in (2, 15, 143)  # the highest of both: one may be stopped before it notices, or as it exits
