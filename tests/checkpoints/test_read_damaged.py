"""Damaged and hostile checkpoints load or are refused by one sentence, in bounded time and memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.helpers.damaged_checkpoints import Damage, refusal

COUNT = int(os.environ.get("SELFPATCH_FUZZ", "300"))
PARTS = 4
"""One for each kind of damage."""


@pytest.mark.parametrize("part", range(PARTS))
def test_damage_is_refused_in_one_sentence(tmp_path: Path, part: int) -> None:
    damage, refused = Damage(), 0
    for seed in range(part, COUNT, PARTS):
        path = damage.write(seed, tmp_path)
        try:
            refused += refusal(path) is not None
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refused > COUNT / PARTS / 3, "most damage matters"
