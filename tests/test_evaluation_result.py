"""A result goes to disk and comes back; its table shows every row."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from selfpatch.evaluation.result import Provenance, Result

RESULT = Result(
    name="davis",
    metrics={"J&F-Mean": 0.5},
    rows=[{"sequence": "dog", "object": 1, "J-Mean": 0.25}, {"sequence": "cow", "object": 2, "J-Mean": 0.75}],
    settings={"radius": 12, "ks": [1, 2]},
    weights=Provenance("runs/a", "abc"),
    pictures=["pictures/dog.jpg"],
)


def test_save_and_load(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "new" / "result.json")
    assert Result.load(tmp_path / "new" / "result.json") == RESULT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["result.json"]
    assert set(RESULT.versions) == {"python", "torch", "selfpatch"}


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    with pytest.raises(TypeError):
        Result("x", {}, settings={"not json": object()}).save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == RESULT
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"name": "x", "weights": None, "colour": 1})])
def test_what_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match="holds no result"):
        Result.load(tmp_path / "result.json")
    with pytest.raises(ValueError, match="no result at"):
        Result.load(tmp_path / "other.json")


def test_table() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for result in (RESULT, Result("knn", {"top-1": 0.125})):
        console.print(result.table())
    text = console.export_text()
    assert all(part in text for part in ("dog", "0.2500", "cow", "0.7500", "J&F-Mean 0.5000", "top-1", "0.1250"))
