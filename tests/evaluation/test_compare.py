"""Results side by side: differences, paired bootstrap intervals, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from selfpatch.evaluation import compare as compare_module
from selfpatch.evaluation.compare import Comparison, Interval, Row, compare, paired_bootstrap
from selfpatch.evaluation.result import Provenance, Result


def result(values: dict[str, float], weights: str | None = "a", **fields) -> Result:
    """One whose quoted `score` is half a point above the mean of its images, so that the two are not one."""
    fields = {
        "metrics": {"score": float(np.nanmean([*values.values()] or [0])) + 0.5},
        "settings": {"size": 480},
        **fields,
    }
    images = {name: {"score": value} for name, value in values.items()}
    return Result("toy", weights=None if weights is None else Provenance(weights), per_image=images, **fields)


def brute_force(values: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image by image, result by result."""
    rng = np.random.default_rng(seed)
    means, differences = [], []
    for _ in range(draws):
        drawn = [values[i] for i in rng.integers(len(values), size=len(values))]
        mean = [sum(row[r] for row in drawn) / len(drawn) for r in range(values.shape[1])]
        means.append(mean)
        differences.append([m - mean[0] for m in mean])
    return tuple(np.array([np.percentile(np.array(d)[:, r], [2.5, 97.5]) for r in range(values.shape[1])])
                 for d in (means, differences))  # fmt: skip


def test_the_bootstrap_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "MAX_DRAWN", 17 * 70)  # the last of five blocks is smaller
    values = np.random.default_rng(3).random((17, 3))
    for mine, plain in zip(paired_bootstrap(values, draws=300, seed=5), brute_force(values, 300, 5), strict=True):
        np.testing.assert_allclose(mine, plain, atol=1e-12)


def test_progress_ends_where_all_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every metric, one after the other; a metric without intervals is skipped."""
    monkeypatch.setattr(compare_module, "MAX_DRAWN", 4 * 500)
    images = {str(i): float(i) for i in range(4)}
    a, b = result(images), result(images, "b")
    told: list[tuple[str, int, int]] = []
    compare([a, b], draws=1200, progress=lambda *report: told.append(report))
    assert told == [("intervals", done, 1200) for done in (0, 500, 1000, 1200)]


def test_the_intervals_are_those_of_many_images() -> None:
    """For many images a bootstrap interval is mean +- 1.96 standard errors, and the pairs' own for a difference."""
    rng = np.random.default_rng(0)
    first = rng.normal(0.5, 0.1, 2000)
    values = np.stack([first, first + rng.normal(0.01, 0.02, 2000)], axis=1)
    of_means, of_differences = paired_bootstrap(values)
    for (low, high), samples in [(of_means[0], first), (of_differences[1], values[:, 1] - first)]:
        error = 1.96 * samples.std() / np.sqrt(2000)
        np.testing.assert_allclose([low, high], [samples.mean() - error, samples.mean() + error], atol=0.1 * error)


def test_two_images_by_hand() -> None:
    """Images 0 and 1: a draw of two has mean 0, 1/2 or 1, at odds of 1 : 2 : 1, so that 95 % reach from 0 to 1."""
    a, b = result({"x": 0.0, "y": 1.0}), result({"x": 0.25, "y": 1.25}, "b")
    quoted, mean = compare([a, b]).rows
    assert quoted == Row("score", None, [1.0, 1.25], [0.0, 0.25], [None, None], [None, None])
    assert mean.title == "score, mean of 2"
    assert (mean.values, mean.differences) == ([0.5, 0.75], [0.0, 0.25])
    assert mean.intervals == [Interval(0, 1), Interval(0.25, 1.25)]
    assert mean.difference_intervals == [None, Interval(0.25, 0.25)], "the same for all images, whichever are drawn"


def test_a_quoted_mean_has_the_intervals_itself() -> None:
    a, b = (replace(r, metrics={"score": np.mean([v["score"] for v in r.per_image.values()])})
            for r in (result({"x": 0.0, "y": 1.0}), result({"x": 1.0, "y": 1.0}, "b")))  # fmt: skip
    (row,) = compare([a, b]).rows
    assert (row.name, row.num_images, row.values) == ("score", 2, [0.5, 1.0])


def test_only_images_that_all_have() -> None:
    """By name, in whatever order; one that lacks the metric or has no number for it is left out."""
    a = result({"x": 0.0, "y": 0.5, "z": 1.0, "nan": 0.0, "only here": 9.0})
    b = result({"z": 1.0, "y": 0.0, "x": 0.5, "nan": float("nan")}, "b")
    row = compare([a, b]).rows[1]
    assert (row.num_images, row.values) == (3, [0.5, 0.5])
    backwards = replace(a, per_image=dict(reversed(a.per_image.items())))
    assert compare([backwards, b]) == compare([a, b])
    lacking = replace(b, per_image={**b.per_image, "x": {}})
    assert compare([a, lacking]).rows[1].num_images == 2
    assert len(compare([a, result({"x": 1.0}, "b")]).rows) == 1, "one image says nothing of others"
    assert len(compare([a, replace(b, per_image={})]).rows) == 1


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    a, b = (result({str(i): float(v) for i, v in enumerate(rng.random(9))}, name) for name in "ab")
    assert compare([a, b], seed=1) == compare([a, b], seed=1)
    assert compare([a, b], seed=1) != compare([a, b], seed=2)


def test_three_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    for path, value in zip(paths, (0.25, 0.5, 0.0), strict=True):
        result({"x": value, "y": value}, path.stem, settings={"sizes": (1, 2)}).save(path)
    comparison = compare([result({"x": 1.0, "y": 1.0}, "first", settings={"sizes": (1, 2)}), *map(str, paths)])
    assert comparison.columns == ["first", "a", "b", "c"]
    assert comparison.rows[1].differences == [0.0, -0.75, -0.5, -1.0]


def test_columns_are_told_apart() -> None:
    a, b = result({}, "same"), result({}, "same")
    assert compare([a, b]).columns == ["result 1", "result 2"]
    assert compare([result({}, None, metrics={}), b]).columns == ["result 1", "result 2"]


def test_one_file_twice(tmp_path: Path) -> None:
    result({"x": 0.0}).save(tmp_path / "a.json")
    columns = compare([tmp_path / "a.json"] * 2).columns
    assert columns == [f"{tmp_path}/a.json (1)", f"{tmp_path}/a.json (2)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"size": 240}}, "size is 480 in result 1 and 240 in result 3"),
        ({"settings": {}}, "size is 480 in result 1 and not given in result 3"),
        ({"settings": {"size": 480, "data": "d"}}, "data is not given in result 1 and d in result 3"),
        ({"name": "other"}, "the evaluation is toy in result 1 and other in result 3"),
    ],
)
def test_what_was_measured_in_another_way(change: dict, message: str) -> None:
    results = [result({"x": 0.0}, "a"), result({"x": 0.0}, "b"), replace(result({"x": 1.0}, "c"), **change)]
    with pytest.raises(ValueError, match=f"cannot be compared: {message}; allow it with --allow-different"):
        compare(results)
    comparison = compare(results, allow_different=True)
    assert comparison.differing == [message]
    assert len(comparison.rows[0].values) == 3


@pytest.mark.parametrize(
    ("evaluation", "setting", "values"),
    [
        *((name, "patch_size", (8, 16)) for name in ("davis", "discover", "correspond")),
        ("linear", "lr", (0.1, 0.2)),
        ("linear", "blocks", (4, 1)),
        ("linear", "mean_patch", (False, True)),
        ("segment", "remembered", (900, 1000)),
        ("segment", "channels", (384, 768)),
        ("detect", "strides", ([4, 8], [8, 16])),
        ("detect", "blocks", ([1, 2], [3, 4])),
        ("correspond", "stride", (8, 16)),
        ("correspond", "block", (10, 20)),
    ],
)
def test_what_comes_with_the_network_is_shown_but_blocks_nothing(evaluation: str, setting: str, values: tuple) -> None:
    a, b = (
        replace(result({}, str(value), metrics={"m": 1.0}, settings={setting: value}), name=evaluation)
        for value in values
    )
    comparison = compare([a, b])
    assert comparison.differing == []
    assert comparison.network_differences == [f"{setting} is {values[0]} in result 1 and {values[1]} in result 2"]
    assert comparison.network_differences[0] in str(comparison.table().caption)


@pytest.mark.parametrize(
    ("evaluation", "settings", "others"),
    [
        ("finetune", {"lr": 0.1}, {"lr": 0.2}),
        ("knn", {"crop": 224}, {"crop": 208}),
        ("knn", {"unreadable": 0}, {"unreadable": 2}),
        ("segment", {"method": "linear", "crop": 448}, {"method": "linear", "crop": 320}),
        ("segment", {"method": "fpn", "crop": 512}, {"method": "fpn", "crop": 504}),
        ("segment", {"method": "fpn", "stride": 8}, {"method": "fpn", "stride": 16}),
    ],
)
def test_what_the_user_gave_blocks(evaluation: str, settings: dict, others: dict) -> None:
    a, b = (replace(result({}, metrics={"m": 1.0}, settings=s), name=evaluation) for s in (settings, others))
    with pytest.raises(ValueError, match="cannot be compared"):
        compare([a, b])


def test_a_crop_rounded_to_the_patch_is_no_other_crop() -> None:
    """512 pixels are 36 patches of 14 and 32 of 16."""
    a, b = (result({}, metrics={"m": 1.0}, settings={"method": "linear", "crop": crop}) for crop in (504, 512))
    comparison = compare([replace(a, name="segment"), replace(b, name="segment")])
    assert comparison.network_differences == ["crop is 504 in result 1 and 512 in result 2"]


def test_metrics_that_one_lacks() -> None:
    a, b = (result({}, name, metrics={name: 1.0}) for name in "ab")
    lines = compare([a, b]).rows
    assert [(row.name, row.values, row.differences) for row in lines] == [
        ("a", [1.0, None], [0.0, None]),
        ("b", [None, 1.0], [None, None]),
    ]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a comparison needs two or more results; 1 named"):
        compare([result({})])
    with pytest.raises(ValueError, match="no result at"):
        compare([result({}, metrics={}), tmp_path / "nothing.json"])
    with pytest.raises(ValueError, match="draws is 0"):
        compare([result({}, metrics={})] * 2, draws=0)


def test_the_table() -> None:
    comparison: Comparison = compare(
        [result({"x": 0.0, "y": 1.0}), result({"x": 0.25, "y": 1.25}, "[b]")], allow_different=True
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison.table())
    text = console.export_text()
    assert "mean of 2" in str(comparison)
    for part in (
        "score",
        "score, mean of 2",
        "1.0000",
        "+0.2500",
        "[0.2500, 1.2500]",
        "[+0.2500, +0.2500]",
        "[low, high]: 95%",
        "[b]",
    ):
        assert part in text, part
