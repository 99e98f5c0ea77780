"""Scorecards: which results are laid side by side, intervals against a plain bootstrap, and every file."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfpatch.cli.main import main
from selfpatch.evaluation.result import Provenance, Result
from selfpatch.experiments.scorecard import NetworkResults, make_scorecard, read_network
from selfpatch.experiments.scorecard_files import csv_table, json_lines, latex_table, write_scorecard

RNG = np.random.default_rng(0)
HITS = {name: {f"{i}.jpg": float(RNG.random() < share) for i in range(40)} for name, share in (("a", 0.8), ("b", 0.5))}


def knn(network: str, data: str = "pets", **settings: int) -> Result:
    per_image = {image: {"top-1 k=20": hit} for image, hit in HITS[network].items()}
    top1 = float(np.mean([*HITS[network].values()]))
    metrics = {"top-1 k=10": 0.1, "top-1 k=20": top1}
    return Result("knn", metrics, (), {"data": data, "resize": 256, **settings}, Provenance(network, f"hash {network}"),
                  per_image=per_image)  # fmt: skip


def segment(network: str, method: str, miou: float, **settings: Any) -> Result:
    per_image = {f"{i}": {"mIoU per image": miou + 0.01 * i} for i in range(5)}
    settings = {"data": f"/{network}/camvid", "method": method, **settings}
    return Result("segment", {"mIoU": miou, "aAcc": 0.9}, (), settings, Provenance(network), per_image=per_image)


def depth(network: str, rmse: float) -> Result:
    return Result("depth", {"a1": 0.7, "rmse": rmse}, (), {"data": "NYU"}, Provenance(network))


A = NetworkResults("a", [knn("a"), segment("a", "knn", 0.5), segment("a", "kmeans", 0.25), depth("a", 0.4)])
B = NetworkResults("b", [depth("b", 0.5), segment("b", "knn", 0.6), knn("b"), knn("b", "pets", resize=64)])


def test_results_meet_by_evaluation_settings_and_name_of_data() -> None:
    card = make_scorecard([A, B], draws=50)
    assert [b.title for b in card.benchmarks] == [
        "knn, pets, resize 256", "segment knn, camvid", "segment kmeans, camvid", "depth, NYU", "knn, pets, resize 64"
    ]  # fmt: skip
    values = {b.title: (b.metric, *b.quoted.values, b.best) for b in card.benchmarks}
    assert values["segment knn, camvid"] == ("mIoU", 0.5, 0.6, {1})
    assert values["segment kmeans, camvid"] == ("mIoU", 0.25, None, set())
    assert values["depth, NYU"] == ("rmse", 0.4, 0.5, {0}), "the lower, the better"
    assert make_scorecard([A, A], draws=5).benchmarks[0].best == {0, 1}, "equal numbers are both the best"
    assert card.benchmarks[3].radar_scores == [0.7, 0.7]
    assert sum(b.quoted.values[0] is None for b in card.benchmarks) == 1, "a benchmark that only the other one has"


def test_titles_show_all_settings_that_differ() -> None:
    """Those that the preset decides are told by it, and what the data decide is shown only where titles are equal."""

    def discover(facet: str, **settings: float) -> Result:
        return Result("discover", {"CorLoc lost": 0.5}, (), {"data": "VOC2007", "facet": facet, "tau": 0.2, **settings})

    pairs = [discover("key", images=3), discover("query", images=4), discover("query", tau=0.3), discover("token")]
    rate: dict[str, Any] = {"preset": "full", "lr": 1e-3, "optimizer": "adamw"}
    linear = [segment("a", "linear", 0.5, **settings) for settings in (
        {"preset": "leopart", "lr": 0.01, "optimizer": "sgd"}, rate, {**rate, "lr": 1e-4, "schedule": "polynomial"}
    )]  # fmt: skip
    assert [b.title for b in make_scorecard([NetworkResults("a", [*pairs, *linear])], draws=5).benchmarks] == [
        "discover, VOC2007, key, tau 0.2", "discover, VOC2007, query, tau 0.2", "discover, VOC2007, query, tau 0.3",
        "discover, VOC2007, token, tau 0.2",
        "segment linear, camvid, leopart",
        "segment linear, camvid, full, default schedule, lr 0.001",
        "segment linear, camvid, full, schedule polynomial, lr 0.0001",
    ]  # fmt: skip


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    card = make_scorecard([A, B], draws=2000)
    row = card.benchmarks[0].quoted
    a, b = (np.array([*HITS[name].values()]) for name in "ab")
    drawn = np.random.default_rng(1).integers(40, size=(20_000, 40))
    for interval, values in (
        (row.intervals[0], a), (row.intervals[1], b), (row.difference_intervals[1], b - a)
    ):  # fmt: skip
        assert interval is not None
        expected = np.quantile(values[drawn].mean(1), (0.025, 0.975))
        np.testing.assert_allclose(interval, expected, atol=0.03)
    assert row.differences[1] == pytest.approx((b - a).mean())
    of_images = card.benchmarks[1].of_images
    assert of_images is not None
    assert of_images.values == pytest.approx([0.52, 0.62])
    assert of_images.intervals[0] is not None


def test_progress_names_the_benchmark() -> None:
    told: list[tuple[str, int, int]] = []
    make_scorecard([A, B], draws=50, progress=lambda *report: told.append(report))
    # Depth has no values of single images, and a k-means that one network lacks those of the other.
    assert {what for what, _, _ in told} == {f"intervals, benchmark {i} of 5" for i in (1, 2, 3, 5)}


def test_files(tmp_path: Path) -> None:
    card = make_scorecard([A, B], draws=50)
    page = write_scorecard(card, tmp_path)
    names = {f"scorecard.{suffix}" for suffix in ("html", "md", "tex", "csv", "jsonl", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "data:image/png;base64," in page.read_text()
    lines = [json.loads(line) for line in (tmp_path / "scorecard.jsonl").read_text().splitlines()]
    assert [line["network"] for line in lines] == ["a", "b"] == [line["network"] for line in json_lines(card)]
    assert lines[0]["sha256"] == "hash a"
    assert [score["value"] for score in lines[0]["scores"]][1:] == [0.5, 0.25, 0.4]
    rows = [*csv.DictReader((tmp_path / "scorecard.csv").open())]
    assert csv_table(card).count("\n") == len(rows) + 1
    (row,) = [row for row in rows if (row["network"], row["metric"], row["benchmark"]) == ("b", "rmse", "depth, NYU")]
    assert (row["value"], row["difference"]) == ("0.5", "0.09999999999999998")
    table = latex_table(card)
    assert r"segment knn, camvid & mIoU & 50.0 & \textbf{60.0} \\" in table
    assert r"depth, NYU & rmse & \textbf{0.400} & 0.500 \\" in table
    assert r"segment kmeans, camvid & mIoU & 25.0 & -- \\" in table
    assert r"{\scriptsize$\pm$" in table
    assert "**60.0; +10.0**" in (tmp_path / "scorecard.md").read_text()


def test_no_negative_zero_and_no_nan_is_printed(tmp_path: Path) -> None:
    """In no number, difference or interval; a value that is not a number is no best one."""
    hits = {str(i): float(i % 2) for i in range(9)}
    results = [
        Result("knn", {"top-1 k=20": float(np.mean([*hits.values()]))}, (), {"data": "pets"}, Provenance(name),
               per_image={image: {"top-1 k=20": hit - shift} for image, hit in hits.items()})
        for name, shift in (("a", 0.0), ("b", 1e-7))
    ]  # fmt: skip
    other = [Result("detect", {"box AP": value}, (), {"data": "coco"}) for value in (math.nan, -1e-9)]
    card = make_scorecard(
        [NetworkResults(n, pair) for n, pair in zip("ab", zip(results, other, strict=True), strict=True)], draws=20
    )
    assert card.benchmarks[1].best == set()
    write_scorecard(card, tmp_path)
    for suffix in ("html", "md", "tex"):
        text = (tmp_path / f"scorecard.{suffix}").read_text()
        assert "-0.0" not in text
        assert "nan" not in text
    assert "+0.0" in (tmp_path / "scorecard.md").read_text()


def test_latex_is_escaped() -> None:
    result = Result("knn", {"top-1 k=20": 0.5}, (), {"data": r"a_b%\x"}, Provenance("w_1&{}"))
    table = latex_table(make_scorecard([NetworkResults("w_1&{}", [result])], draws=5))
    assert r"w\_1\&\{\}" in table
    assert r"a\_b\%\textbackslash{}x" in table


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for network in (A, B):
        for number, result in enumerate(network.results, start=1):
            result.save(tmp_path / network.name / f"{number}-{result.name}" / "result.json")
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert [result.metrics for result in read_network(folders[0]).results] == [result.metrics for result in A.results]
    assert main(["evaluate", "--compare", *folders, "--out", str(tmp_path / "card")]) == 0
    assert (tmp_path / "card" / "scorecard.html").is_file()
    assert main(["evaluate", "--compare", *folders]) == 2
    assert "a holds no result.json; for the folder of a suite, name a scorecard with --out" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "--compare", folders[0], str(tmp_path / "empty"), "--out", str(tmp_path / "card")]) == 2
    assert "empty holds no results" in capsys.readouterr().err


def test_lines_are_strict_json(tmp_path: Path) -> None:
    result = Result("knn", {"top-1 k=20": 0.5, "other": math.nan}, (), {"shares": (math.inf, 1.0)}, Provenance("w"))
    write_scorecard(make_scorecard([NetworkResults("w", [result])], draws=5), tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    (score,) = json.loads((tmp_path / "scorecard.jsonl").read_text(), parse_constant=refuse)["scores"]
    assert score["metrics"] == {"top-1 k=20": 0.5, "other": None}
    assert score["settings"] == {"shares": [None, 1.0]}
