"""The notebooks of the documentation run, one after the other, with small settings in place of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.notebooks import NAMES, NOTEBOOKS, execute, kernel

TINY: dict[str, dict[str, Any]] = {
    "first-contact": {"settings": {"epochs": 0.1, "batch_size": 8, "watch": {"picture_images": 1}, "device": "cpu"}},
    "features-of-my-photographs": {"limit": 8},
    "post-train-and-compare": {
        "settings": {"epochs": 0.03, "batch_size": 8, "watch": {"picture_images": 0}, "device": "cpu"}
        | {"pairs": {"clean_size": 32, "contained_size": 32}},
        "limit": 4,
    },
}
"""Values that replace those of the first cells."""


def test_every_notebook_is_run() -> None:
    notebooks = list(NOTEBOOKS.glob("*.ipynb"))
    assert {path.stem for path in notebooks} == set(TINY) == set(NAMES)
    assert not any(str(Path.home()) in path.read_text(encoding="utf-8") for path in notebooks)


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path) -> None:
    with kernel() as manager:
        for name in NAMES:
            execute(name, manager, tmp_path, TINY[name])
    for file in ("report.html", "explore.html"):
        assert (tmp_path / "runs" / "first-contact" / file).is_file()
    assert (tmp_path / "results" / "after" / "result.json").is_file()
    assert (tmp_path / "before-and-after.html").is_file()
