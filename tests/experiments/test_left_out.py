"""Evaluations of a suite without a result: what is kept of them, and how a scorecard shows them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from selfpatch.evaluation.result import Provenance, Result
from selfpatch.experiments.entries import Entry, Outcome
from selfpatch.experiments.left_out import FILE, LeftOut, read_left_out, write_left_out
from selfpatch.experiments.scorecard import NetworkResults, make_scorecard, read_network
from selfpatch.experiments.scorecard_files import write_scorecard

KNN = Result("knn", {"top-1 k=20": 0.5}, (), {"data": "pets"}, Provenance("w"))


def entry(number: int, evaluation: str, data: str, **settings: object) -> Entry:
    return Entry(number, evaluation, data, settings)


def left_out_of(tmp_path: Path, *outcomes: Outcome) -> list[LeftOut]:
    write_left_out(outcomes, tmp_path)
    return read_left_out(tmp_path)


def test_states_and_reasons(tmp_path: Path) -> None:
    there = str(tmp_path)
    found = left_out_of(
        tmp_path,
        Outcome(entry(1, "davis", "none/DAVIS"), error="there is no folder none/DAVIS; name it", was_refused=True),
        Outcome(entry(2, "davis", there), error=f"{there} has no\nDAVIS; use a \x1b copy", was_refused=True),
        Outcome(entry(3, "discover", there), error="the disk is full"),
        Outcome(entry(4, "knn", there), KNN),
        Outcome(entry(5, "detect", there)),
        Outcome(entry(6, "knn", there), error="x" * 500),
    )
    phrases = [one.phrase for one in found]
    assert phrases[:4] == ["data missing", f"refused: {there} has no DAVIS", "failed: the disk is full", "not run yet"]
    assert len(phrases[4]) < 120, "a phrase, not a page"
    assert [one.folder for one in found] == ["1-davis", "2-davis", "3-discover", "5-detect", "6-knn"]
    assert left_out_of(tmp_path, Outcome(entry(4, "knn", there), KNN)) == [], "the next run answered all"


@pytest.mark.parametrize(
    "text",
    [
        '{"not": "ours"}', "{", "[3]", "[{}]",
        '[{"folder": "1-knn", "evaluation": "knn", "settings": 5, "state": "failed"}]',
        '[{"folder": "1-knn", "evaluation": [], "settings": {}, "state": "failed"}]',
    ],
)  # fmt: skip
def test_a_file_of_others_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="no list that a suite wrote"):
        read_left_out(tmp_path)


def test_an_old_result_of_what_is_left_out_now_does_not_count(tmp_path: Path) -> None:
    for folder in ("1-knn", "2-knn"):
        KNN.save(tmp_path / folder / "result.json")
    write_left_out([Outcome(entry(2, "knn", "pets"), error="no memory")], tmp_path)
    network = read_network(tmp_path)
    assert len(network.results) == 1
    assert [one.phrase for one in network.left_out] == ["failed: no memory"]


def test_what_one_network_lacks_is_shown_in_the_line_of_the_other(tmp_path: Path) -> None:
    lacks = left_out_of(
        tmp_path,
        Outcome(entry(1, "segment", "B/camvid", method="knn", resolution=224), error="out of memory"),
        Outcome(entry(2, "segment", "B/camvid", method="knn", resolution=448), error="out of memory"),
        Outcome(entry(3, "davis", "B/DAVIS"), error="there is none", was_refused=True),
    )
    settings = {"data": "A/camvid", "method": "knn", "resolution": 224, "test_images": 9}
    a = NetworkResults("a", [Result("segment", {"mIoU": 0.5}, (), settings, Provenance("a"))])
    card = make_scorecard([a, NetworkResults("b", [KNN], lacks)], draws=5)
    states = [[None if one is None else one.state for one in benchmark.left_out] for benchmark in card.benchmarks]
    assert states == [[None, "failed"], [None, None], [None, "failed"], [None, "data missing"]]
    assert [benchmark.is_measured for benchmark in card.benchmarks] == [True, True, False, False]


def test_every_file_of_a_scorecard_gives_the_reason(tmp_path: Path) -> None:
    lacks = left_out_of(tmp_path, Outcome(entry(1, "davis", "none"), error="there is none", was_refused=True),
                        Outcome(entry(2, "knn", str(tmp_path)), error="k_1 is 0; use 1"))  # fmt: skip
    results = [Result("knn", {"top-1 k=20": 0.5}, (), {"data": f"pets {i}"}, Provenance("w")) for i in range(3)]
    write_scorecard(make_scorecard([NetworkResults("w", results, lacks)], draws=5), tmp_path)
    davis, knn = "davis, none", f"knn, {tmp_path.name}"
    assert f"| {davis} | – | data missing |" in (tmp_path / "scorecard.md").read_text()
    page = " ".join((tmp_path / "scorecard.html").read_text().split())
    assert "failed: k_1 is 0</td>" in page
    assert '<td class="number">data missing</td>' in page
    table = (tmp_path / "scorecard.tex").read_text()
    assert rf"{davis} & -- & \textit{{data missing}} \\" in table
    rows = {row["benchmark"]: row for row in csv.DictReader((tmp_path / "scorecard.csv").open())}
    assert (rows[davis]["left out"], rows[davis]["value"]) == ("data missing", "")
    assert rows[knn]["left out"] == "failed: k_1 is 0"
    (line,) = map(json.loads, (tmp_path / "scorecard.jsonl").read_text().splitlines())
    assert [(one["benchmark"], one["reason"]) for one in line["left_out"]] == [
        (davis, "data missing"), (knn, "failed: k_1 is 0")
    ]  # fmt: skip
    assert len(line["scores"]) == 3
