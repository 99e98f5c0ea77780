"""A damaged file of any format is read or is a BadImage, for every reader, and never ends the process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.damaged_images import READERS, damaged, originals, read_all, run

FORMATS = tuple(originals())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_undamaged_files_of_every_encoding_are_read(tmp_path: Path, name: str) -> None:
    for content in originals()[name]:
        (tmp_path / "image").write_bytes(content)
        assert "read" in dict(read_all(tmp_path / "image")).values()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_a_bad_image(tmp_path: Path, name: str) -> None:
    files = originals()[name]
    outcomes = Counter[str]()
    for number in range(3 * len(files)):
        content = damaged(files[number % len(files)], np.random.default_rng([1, number]))
        (tmp_path / "image").write_bytes(content)
        outcomes.update(outcome for _, outcome in read_all(tmp_path / "image"))
    assert set(outcomes) <= {"read", "BadImage"}
    assert outcomes["BadImage"]


@pytest.mark.slow
def test_no_reader_ends_its_process() -> None:
    for name in FORMATS:
        outcomes, faults, memory = run(name, 0, 50, seed=2)
        assert not faults
        assert sum(outcomes.values()) == 50 * len(READERS)
        assert memory > 0
