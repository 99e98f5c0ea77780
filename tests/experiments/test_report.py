"""The report of a study: its arithmetic by hand, and Markdown, SVG and HTML that say what the numbers are."""

from __future__ import annotations

import math
import os
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfpatch.experiments.report import write_study_report
from selfpatch.experiments.results import Row, StudyResults, percent
from selfpatch.visualization.layout import SERIES
from tests.experiments.test_results import row, study_results
from tests.helpers.html_page import Page
from tests.helpers.svg_curves import legend, words

WRAP = "DINO + SelfPatch <k=4> & wrap"
scores = st.floats(0, 1)


def table(text: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table below a heading: row -> column -> cell."""
    lines = text.split(f"## {heading}\n", 1)[1].split("\n## ")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    head, _, *rows = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line] for line in cells]
    return {first: dict(zip(head[1:], rest, strict=True)) for first, *rest in rows}


def written(found: StudyResults, out: Path) -> str:
    return write_study_report(found, out).read_text(encoding="utf-8")


def test_the_tables(tmp_path: Path) -> None:
    baselines = [row("untrained", J=[0.25, 0.26, 0.27]), row("mean colour", J={None: 0.393})]
    dino = Row("DINO", {"J": {0: 0.40, 1: 0.41, 2: 0.42}}, 5400, {0: 60.0, 1: 62.0, 2: 70.0})
    arms = [dino, Row(WRAP, {"J": {0: 0.43, 1: 0.42, 2: 0.45}}, 5400, {0: 9.26}), row("random", J={1: 0.35})]
    text = written(study_results(arms, baselines), tmp_path)
    results = table(text, "Results")
    assert list(results) == ["untrained (baseline a)", "mean colour (baseline b)", "DINO", WRAP, "random"]
    assert list(results["DINO"]) == ["J", "steps", "minutes"]
    assert list(results["untrained (baseline a)"].values()) == ["26.0 ± 1.0", "–", "–"]
    assert list(results["mean colour (baseline b)"].values()) == ["39.3", "–", "–"]
    assert list(results["DINO"].values()) == ["41.0 ± 1.0", "5,400", "64"]
    assert list(results[WRAP].values()) == ["**43.3 ± 1.5**", "5,400", "9.3"]
    assert list(results["random"].values()) == ["35.0 (n=1) †b", "–", "–"]
    assert "over the seeds 0, 1, 2" in text
    assert "† The arm does not beat a baseline: b, mean colour." in text
    assert table(text, "Difference to DINO") == {WRAP: {"J": "+2.3 ± 1.2, 3 of 3"}, "random": {"J": "-6.0, 0 of 1"}}


def test_another_reference(tmp_path: Path) -> None:
    text = written(study_results([row("a", x=[0.5]), row("b", x=[0.4])], reference="b"), tmp_path)
    assert table(text, "Difference to b") == {"a": {"x": "+10.0, 1 of 1"}}


def test_a_baseline_as_reference(tmp_path: Path) -> None:
    """The differences of every arm are shown, also of a single one."""
    baselines = [row("as is", x={None: 0.434}), row("colour", x={None: 0.2})]
    text = written(study_results([row("a", x=[0.454, 0.474])], baselines, reference="as is"), tmp_path)
    assert table(text, "Difference to as is") == {"a": {"x": "+3.0 ± 1.4, 2 of 2"}}


@pytest.mark.parametrize(
    ("arm", "mark"),
    [(0.5, ""), (0.4004, "†b"), (0.4, "†b"), (0.401, ""), (0.399, "†b"), (0.3, "†ab"), (0.1, "†ab")],
)
def test_an_arm_that_does_not_beat_a_baseline_is_marked(tmp_path: Path, arm: float, mark: str) -> None:
    """Equal is not above, and what is printed alike is equal."""
    baselines = [row("untrained", x=[0.3]), row("mean colour", x={None: 0.4}), row("raw patch", y={None: 0.9})]
    text = written(study_results([row("arm", x=[arm])], baselines), tmp_path)
    assert table(text, "Results")["arm"]["x"] == f"{percent(arm)} {mark}".strip()
    assert ("†" in text) == bool(mark)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("sup" in {tag for tag, _ in page.tags}) == bool(mark)


def test_the_best_arm_is_bold_and_so_is_its_equal(tmp_path: Path) -> None:
    arms = [row("a", x=[0.5, 0.6], y=[0.2]), row("b", x=[0.5501], z=[0.1]), row("c", x=[0.4], y=[0.3])]
    results = table(written(study_results(arms, [row("colour", x=[0.9], y=[0.1])]), tmp_path), "Results")
    assert [results[name]["x"] for name in "abc"] == ["**55.0 ± 7.1** †a", "**55.0 (n=1)** †a", "40.0 (n=1) †a"]
    assert [results[name]["y"] for name in "abc"] == ["20.0 (n=1)", "–", "**30.0 (n=1)**"]
    assert results["b"]["z"] == "10.0 (n=1)"  # there is nothing to choose from
    assert results["colour (baseline a)"]["x"] == "90.0"


def test_one_seed_shows_no_spread_and_says_so(tmp_path: Path) -> None:
    text = written(study_results([row("a", x={3: 0.5}), row("b", x={3: 0.6})]), tmp_path)
    assert "±" not in text.split("## Difference")[0]
    assert "of one seed (3): how far seeds differ is not known" in text


def test_a_study_that_has_barely_begun(tmp_path: Path) -> None:
    found = study_results([row("a"), row("b")], columns=["x"], curves={"loss": {}, "x": {"a": []}}, num_unfinished=1)
    text = written(found, tmp_path)
    assert table(text, "Results")["a"] == {"x": "–", "steps": "–", "minutes": "–"}
    assert table(text, "Difference to a") == {"b": {"x": "–"}}
    assert "1 job yet to be run" in text
    assert "## loss" not in text
    assert written(study_results([], columns=[]), tmp_path).startswith("# T\n")


@settings(max_examples=30)  # each writes a whole report
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12),
        st.dictionaries(st.integers(0, 3), scores, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_markdown_gives_the_numbers_back(tmp_path_factory: pytest.TempPathFactory, arms: dict) -> None:
    found = study_results([row(name, score=values) for name, values in arms.items()])
    results = table(written(found, tmp_path_factory.mktemp("study")), "Results")
    assert list(results) == list(arms)
    for name, values in arms.items():
        numbers = [float(n) for n in re.findall(r"\d+\.\d", results[name]["score"])]
        expected = [100 * statistics.mean(values.values())] if values else []
        expected += [100 * statistics.stdev(values.values())] if len(values) > 1 else []
        assert numbers == pytest.approx(expected, abs=0.0501)


CURVES = {"DINO": [(0.0, 6.0), (100.0, 4.0)], WRAP: [(0.0, 6.5), (100.0, 3.5)], "none yet": []}


def test_curves_lie_beside_the_markdown_and_in_the_page(tmp_path: Path) -> None:
    curves = {"loss": CURVES, "patches matched, %": {"DINO": [(100.0, 29.0)]}, "J&F": CURVES, "J F": CURVES}
    text = written(study_results([row("DINO"), row(WRAP)], curves=curves), tmp_path)
    paths = re.findall(r"!\[.*\]\(<(.*)>\)", text)
    assert paths == [f"figures/{name}.svg" for name in ("loss", "patches-matched", "j-f", "j-f-2")]
    shown = {path: words((tmp_path / path).read_text(encoding="utf-8")) for path in paths}
    assert {"loss", "DINO", WRAP, "step"} <= set(shown["figures/loss.svg"])
    assert "none yet" not in shown["figures/loss.svg"]
    assert {"patches matched, %", "DINO"} <= set(shown["figures/patches-matched.svg"])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    legends = [set(legend(svg.decode())) for _, svg in page.images()]
    assert legends == [{"DINO", WRAP}, {"DINO"}, {"DINO", WRAP}, {"DINO", WRAP}]
    assert page.words.count(WRAP) == 3  # a row of each table


def test_the_ends_of_every_curve_are_in_a_table(tmp_path: Path) -> None:
    curves = {
        "loss": CURVES,
        "matched, %": {"DINO": [(0.0, 25.04), (50.0, 40.0), (100.0, 29.0)], WRAP: [(100.0, 31.2)]},
    }
    curves["J"] = {"DINO": []}
    text = written(study_results([row("DINO"), row(WRAP)], curves=curves), tmp_path)
    assert table(text, "First and last values") == {
        "DINO": {"loss": "6 to 4", "matched, %": "25 to 29"},
        WRAP: {"loss": "6.5 to 3.5", "matched, %": "31.2"},
    }


def test_an_arm_has_its_colour_in_every_figure(tmp_path: Path) -> None:
    line = [(0.0, 1.0), (1.0, 2.0)]
    curves = {"all": {"c": line, "a": line, "b": line}, "some": {"c": line}}
    written(study_results([row("a"), row("b"), row("c")], curves=curves), tmp_path)
    for name in ("all", "some"):
        assert legend((tmp_path / "figures" / f"{name}.svg").read_text())["c"].colour == SERIES[2]
    images = Page((tmp_path / "report.html").read_text(encoding="utf-8")).images()
    assert [legend(svg.decode())["c"].colour for _, svg in images] == [SERIES[2]] * 2


def test_points_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    gone = [(0.0, math.nan), (1.0, math.inf)]
    text = written(study_results([row("a")], curves={"loss": {"a": gone}}), tmp_path)
    assert "## loss" not in text


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "after & before #1.png"
    path.parent.mkdir()
    Image.new("RGB", (5, 4), (9, 8, 7)).save(path)
    return path


def test_the_page_needs_no_other_file(sheet: Path, tmp_path: Path) -> None:
    found = study_results(
        [row("DINO", x=[0.4]), row(WRAP, x=[0.3])],
        curves={"loss": CURVES},
        sheets=[sheet, tmp_path / "gone.png"],
        failures=["a, seed 1: the loss is not finite."],
        conditions={"device": "cpu | 2 cores"},
        num_unfinished=2,
    )
    text = written(found, tmp_path / "out")
    (link,) = re.findall(r"\(<(.*png)>\)", text)
    assert link == "../pictures/after%20%26%20before%20%231.png"
    assert table(text, "Conditions") == {"device": {"value": "cpu | 2 cores"}}
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    (_, svg), (mime, png) = page.images()
    assert mime == "image/png"
    assert png == sheet.read_bytes()
    assert set(legend(svg.decode())) == {"DINO", WRAP}
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"http|url\(|@import|href", html)
    for sentence in ("Q?", "a, seed 1: the loss is not finite.", "2 jobs yet to be run", "1 failure: see below"):
        assert sentence in text
        assert sentence in html


def test_writing_again_overwrites_and_leaves_nothing_else(tmp_path: Path) -> None:
    once = study_results([row("a", x=[0.1])], curves={"loss": {"a": [(0.0, 1.0)]}})
    again = study_results([row("a", x=[0.2])], curves={"loss": {"a": [(0.0, 1.0), (1.0, 7.0)]}})
    assert write_study_report(once, tmp_path) == tmp_path / "report.md"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_study_report(again, tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).as_posix() for path in after} == {"report.md", "report.html", "figures/loss.svg"}
    assert all(after[path] != files[path] for path in files)


@pytest.mark.parametrize("file", ["report.md", "report.html", "figures/loss.svg"])
def test_what_cannot_be_written_leaves_the_old_report(tmp_path: Path, monkeypatch, file: str) -> None:
    curves = {"loss": {"a": [(0.0, 1.0)]}}
    written(study_results([row("a", x=[0.1])], curves=curves), tmp_path)
    before, replace = (tmp_path / file).read_bytes(), os.replace

    def fails(source: Path, target: Path) -> None:
        if target == tmp_path / file:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        written(study_results([row("a", x=[0.2])], curves=curves), tmp_path)
    assert (tmp_path / file).read_bytes() == before
    assert not [*tmp_path.rglob("*.tmp")]
