"""A result goes to disk and comes back; its table shows every row."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from selfpatch.core.machine import device_name
from selfpatch.evaluation.result import Provenance, Result

RESULT = Result(
    name="davis",
    metrics={"J&F-Mean": 0.5},
    rows=[{"sequence": "dog", "object": 1, "J-Mean": 0.25}, {"sequence": "cow", "object": 2, "J-Mean": 0.75}],
    settings={"radius": 12, "ks": [1, 2]},
    weights=Provenance("runs/a", "abc"),
    pictures=["pictures/dog.jpg"],
    per_image={"dog": {"J-Mean": 0.25}, "cow": {"J-Mean": 0.75}},
    device="a CPU",
    costs={"seconds": 2.0},
)


def test_save_and_load(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "new" / "result.json")
    assert Result.load(tmp_path / "new" / "result.json") == RESULT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["result.json"]
    assert set(RESULT.versions) == {"python", "selfpatch", "torch", "torchvision", "timm"}
    loaded = Result.load(tmp_path / "new" / "result.json")
    assert (loaded.device, loaded.costs) == ("a CPU", {"seconds": 2.0})


def test_costs_are_no_part_of_the_outcome() -> None:
    assert replace(RESULT, costs={}, device=None) == RESULT
    assert replace(RESULT, per_image={}) != RESULT


def test_a_file_from_before_values_of_images(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    values = json.loads((tmp_path / "result.json").read_text())
    for name in ("per_image", "device", "costs"):
        del values[name]
    (tmp_path / "result.json").write_text(json.dumps(values))
    old = Result.load(tmp_path / "result.json")
    assert (old.per_image, old.device, old.costs) == ({}, None, {})
    assert replace(old, per_image=RESULT.per_image) == RESULT


def test_the_name_of_this_machine() -> None:
    assert device_name(torch.device("cpu"))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    with pytest.raises(TypeError):
        Result("x", {}, settings={"not json": object()}).save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == RESULT
    assert len(list(tmp_path.iterdir())) == 1


MINIMAL = {"name": "x", "metrics": {"J": 0.5}, "weights": None}
WRONG = [
    json.dumps({**MINIMAL, **wrong})
    for wrong in (
        {"colour": 1},
        {"metrics": [1]},
        {"metrics": {"J": "good"}},
        {"rows": [1]},
        {"per_image": {"a": 2}},
        {"weights": {"source": 3}},
        {"weights": 5},
        {"costs": {"seconds": None}},
        {"notes": "x"},
    )
]


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", '{"a": 1, "a": 2}', "[" * 100_000, *WRONG])
def test_what_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match="is not a result"):
        Result.load(tmp_path / "result.json")
    with pytest.raises(ValueError, match="no result at"):
        Result.load(tmp_path / "other.json")


def test_pictures_of_a_result_lie_in_its_folder(tmp_path: Path) -> None:
    """A report shows them, so that a result of somebody else could bring any file into it."""
    for picture in ("/etc/hosts", "../x.png", 7):
        (tmp_path / "result.json").write_text(json.dumps({**MINIMAL, "pictures": [picture]}))
        with pytest.raises(ValueError, match=r"result\.json names .*, which (is an absolute|leads out|is no text)"):
            Result.load(tmp_path / "result.json")


def test_table() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for result in (RESULT, Result("knn", {"top-1": 0.125})):
        console.print(result.table())
    text = console.export_text()
    assert all(part in text for part in ("dog", "0.2500", "cow", "0.7500", "J&F-Mean 0.5000", "top-1", "0.1250"))
    assert "2 seconds" in text


def test_print_shows_the_table_as_the_command_does() -> None:
    shown = str(Result("knn", {"top-1": 0.125}, notes=["[one] note"]))
    assert shown == repr(Result("knn", {"top-1": 0.125}, notes=["[one] note"]))
    assert "Result(" not in shown
    assert all(part in shown for part in ("metric", "top-1", "0.1250", "[one] note"))
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown


def test_the_folder_of_an_evaluation_is_its_result(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    assert Result.load(tmp_path) == RESULT
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no result at .*empty/result\.json"):
        Result.load(tmp_path / "empty")


def test_a_result_of_a_later_version_is_told(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("\ufeff" + json.dumps({**MINIMAL, "later": 1}))
    with pytest.raises(ValueError, match=r"the later 1; it is of another version of selfpatch"):
        Result.load(tmp_path / "result.json")
    (tmp_path / "result.json").write_text("\ufeff" + json.dumps(MINIMAL))
    assert Result.load(tmp_path / "result.json").metrics == {"J": 0.5}


def test_names_of_a_table_are_no_markup() -> None:
    rows = [{"class": name, "IoU": 0.5} for name in ("road [wet]", "car [/parked]", "two\nlines", "caf\udce9")]
    out = io.StringIO()
    Console(file=out, width=80).print(Result("segment", {"mIoU": 0.5}, rows, notes=["a [/note]\x1b[31m"]).table())
    for shown in ("road [wet]", "car [/parked]", "two\\nlines", "caf\\xe9", "a [/note]\\x1b[31m"):
        assert shown in out.getvalue()


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    result = Result("knn", {"top-1": 0.5}, per_image={"caf\udce9.png": {"top-1": 1.0}, "caf\u00e9.png": {"top-1": 0.0}})
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json").per_image == result.per_image
    assert "caf\u00e9.png" in (tmp_path / "result.json").read_text(encoding="utf-8")


def test_a_table_says_that_positions_were_removed() -> None:
    page = Console(file=io.StringIO(), width=100)
    for settings in ({}, {"debias": 0}, {"debias": 20}):
        page.print(replace(RESULT, settings=settings).table())
    shown = " ".join(page.file.getvalue().split())  # type: ignore[attr-defined]
    assert shown.count("positions removed") == shown.count("davis, positions removed (debias 20)") == 1


def test_a_table_fits_80_columns_with_whole_names_and_numbers() -> None:
    metrics = {f"{letter}-{kind}": 0.5 for letter in "JF" for kind in ("Mean", "Recall", "Decay")}
    rows = [{"sequence": "horsejump-high", "object": 1, **metrics}]
    out = io.StringIO()
    Console(file=out, width=80).print(Result("davis", {"J&F-Mean": 0.5, **metrics}, rows).table())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(name in " ".join(lines[1].split()) for name in rows[0])
    assert sum(line.startswith("horsejump-high ") for line in lines) == 1
    assert all(any(f"{name} 0.5000" in line for line in lines) for name in metrics)
    assert max(map(len, lines)) <= 80
