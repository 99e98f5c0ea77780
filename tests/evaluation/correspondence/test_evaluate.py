"""Semantic correspondence: PCK by hand, the layout of SPair-71k, presets, real pairs, words for bad data."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import Tensor

from selfpatch.api.evaluate import measure, presets
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.correspondence.dataset import Pair, open_pairs
from selfpatch.evaluation.correspondence.evaluate import evaluate
from selfpatch.evaluation.correspondence.metrics import (
    ScoredPair,
    category_rows,
    means_by_viewpoint,
    means_over_all,
    means_over_categories,
    points_by_position,
    within_threshold,
)
from selfpatch.evaluation.degenerate import PATCHES_EQUAL, Degenerate
from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.evaluation.result import Result
from tests.helpers.spair_data import coloured_patches, write_spair


class Colour(MeanColour):
    """Mean colour about grey, so that directions tell colours apart."""

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(images - 0.5)


PLACES = [[3.5, 3.5], [43.5, 27.5], [91.5, 59.5]]
"""Centres of three patches."""


@pytest.fixture
def spair(tmp_path: Path) -> Path:
    """`b` is `a` upside down; `cat` has one pair, all of it right, `dog` two pairs with wrong truths among them."""
    a = coloured_patches(0)
    turned = [[x, 63 - y] for x, y in PLACES]
    pairs = {
        "000000-a-b:cat": {"src_kps": PLACES, "trg_kps": turned},
        "000001-a-b:dog": {"src_kps": PLACES[:1], "trg_kps": PLACES[:1]},
        "000002-a-a:dog": {"src_kps": PLACES, "trg_kps": [*PLACES[:2], [88.0, 40.0]]},
    }
    return write_spair(tmp_path / "spair", pairs, {"a": a, "b": a[::-1]})


def test_pck_of_features_counted_by_hand(spair: Path, tmp_path: Path) -> None:
    """The third dog truth lies hypot(3.5, 19.5) = 19.8 pixels away: outside 0.2 * 95 = 19, inside 0.21 * 95."""
    out = tmp_path / "out"
    result = measure(
        "correspond", Colour(8), None, spair, resolution=96, shape="keep", alphas=(0.01, 0.2, 0.21), out=out
    )
    rows = {(row["category"], row["alpha"]): row for row in result.rows}
    assert rows["cat", "0.01"]["per image"] == rows["cat", "0.01"]["per point"] == 1
    assert rows["dog", "0.2"]["per image"] == pytest.approx((0 + 2 / 3) / 2)
    assert rows["dog", "0.2"]["per point"] == pytest.approx(2 / 4)
    assert rows["dog", "0.21"]["per point"] == pytest.approx(3 / 4)
    baselines = [row["position, per point"] for row in result.rows if row["alpha"] == "0.2"]
    assert np.mean(baselines) == pytest.approx(result.metrics["baseline:position PCK@0.2 per point"])
    assert result.metrics["PCK@0.2 per image"] == pytest.approx((1 + 1 / 3) / 2)
    assert result.metrics["PCK@0.2 per point"] == pytest.approx((1 + 1 / 2) / 2)
    assert result.per_image["000002-a-a:dog"]["PCK@0.2"] == pytest.approx(2 / 3)
    assert (rows["dog", "0.2"]["pairs"], rows["dog", "0.2"]["points"]) == (2, 4)
    assert Result.load(out / "result.json") == result
    assert len(result.pictures) == 3
    assert all((out / picture).is_file() for picture in result.pictures)


def test_the_table_is_readable_at_80_columns(spair: Path) -> None:
    """Each row on one line, no number folded; the longest category is `pottedplant`."""
    result = evaluate(Colour(8), spair, CorrespondenceConfig(resolution=96, shape="keep"))
    wide = [{**row, "category": "pottedplant", "pairs": 1000, "points": 10000} for row in result.rows]
    console = Console(width=80, file=io.StringIO())
    console.print(replace(result, rows=wide).table())
    lines = [line for line in console.file.getvalue().splitlines() if "pottedplant" in line]
    assert len(lines) == len(result.rows) == 6
    for line, row in zip(lines, wide, strict=True):
        cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        assert re.split(" {2,}", line.strip()) == cells


def test_a_distance_just_at_the_threshold_counts() -> None:
    truth = np.zeros((3, 2))
    found = np.array([[10.0, 0], [0, 10.001], [6, 8]])
    assert within_threshold(found, truth, (100, 40), [0.1]).tolist() == [[True, False, True]]
    assert within_threshold(found, truth, (100, 40), [0.05, 0.2]).tolist() == [[False] * 3, [True] * 3]


def test_threshold_of_box_or_image(spair: Path) -> None:
    path = spair / "PairAnnotation" / "test" / "000002-a-a:dog.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trg_bndbox": [50, 20, 90, 63]}))

    def pck(threshold: Any) -> dict[str, float]:
        result = evaluate(
            Colour(8),
            spair,
            CorrespondenceConfig(resolution=96, shape="keep", alphas=(0.3,), threshold=threshold, categories=("dog",)),
        )
        return dict(result.per_image["000002-a-a:dog"])

    assert pck("box") == {"PCK@0.3": pytest.approx(2 / 3)}, "0.3 * 43 is less than 19.8"
    assert pck("image") == {"PCK@0.3": 1}, "0.3 * 96 is more"


def scored(category: str, *right: bool) -> ScoredPair:
    empty = np.zeros((len(right), 2))
    return ScoredPair(Pair("p", category, Path(), Path(), empty, empty, np.zeros(4), np.zeros(4)), np.array([right]))


def test_means_by_image_by_point_and_over_categories() -> None:
    pairs = [scored("a", True), scored("a", True, False, False, False), scored("b", False, False)]
    rows = category_rows(pairs, [0.1])
    assert means_over_all(pairs, [0.1]) == pytest.approx(
        {"PCK@0.1 all pairs": (1 + 0.25 + 0) / 3, "PCK@0.1 all points": 2 / 7}
    )
    assert rows[0] == {
        "category": "a", "pairs": 2, "points": 5,
        "PCK@0.1 per image": (1 + 0.25) / 2, "PCK@0.1 per point": 2 / 5,
    }  # fmt: skip
    assert means_over_categories(rows) == pytest.approx({"PCK@0.1 per image": 0.3125, "PCK@0.1 per point": 0.2})


def test_means_by_viewpoint() -> None:
    """Category b has no pair of viewpoint 2; pairs without a viewpoint are left out."""
    pairs = [scored("a", True), scored("a", True, False), scored("b", False), scored("b", True)]
    pairs = [
        one._replace(pair=replace(one.pair, viewpoint=viewpoint))
        for one, viewpoint in zip(pairs, (0, 2, 0, None), strict=True)
    ]
    assert means_by_viewpoint(pairs, [0.1]) == {
        "PCK@0.1 per point, viewpoint 0": (1 + 0) / 2, "PCK@0.1 per point, viewpoint 2": 1 / 2,
    }  # fmt: skip


def test_position_in_the_box() -> None:
    boxes = np.array([10.0, 20, 30, 60]), np.array([0.0, 0, 40, 20])
    points = np.array([[10.0, 20], [30, 60], [15, 50]])
    pair = Pair("p", "a", Path(), Path(), points, points, *boxes)
    assert points_by_position(pair).tolist() == [[0, 0], [40, 20], [10, 15]]
    flat = Pair("p", "a", Path(), Path(), points, points, np.array([10.0, 20, 10, 60]), boxes[1])
    assert points_by_position(flat)[:, 0].tolist() == [20, 20, 20], "the middle, where a box has no width"


def test_the_baseline_of_the_real_pairs(data_dir: Path) -> None:
    result = evaluate(
        Colour(8), data_dir / "correspondence_car", CorrespondenceConfig.from_settings({"preset": "small"})
    )
    baseline = {name: value for name, value in result.metrics.items() if name.startswith("baseline:position")}
    assert baseline["baseline:position PCK@0.1 per point"] == pytest.approx(0.590, abs=5e-4)
    assert baseline["baseline:position PCK@0.05 per point"] == pytest.approx(0.196, abs=5e-4)
    assert (result.settings["pairs"], result.rows[0]["points"]) == (190, 761)
    assert len(result.per_image) == 190


def test_real_images_match_themselves(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "correspondence_car"
    values = json.loads(next((source / "PairAnnotation" / "test").glob("000000-*")).read_text())
    same = {**values, "trg_imname": values["src_imname"], "trg_kps": values["src_kps"]}
    image = np.asarray(Image.open(source / "JPEGImages" / "car" / values["src_imname"]).convert("RGB"))
    root = write_spair(
        tmp_path, {"0-a-a:car": {**same, "category": "car", "src_imname": "a.png", "trg_imname": "a.png"}}, {"a": image}
    )
    result = evaluate(Colour(8), root, CorrespondenceConfig(sampling="nearest", resolution=304, alphas=(0.04,)))
    assert result.metrics["PCK@0.04 per point"] == 1, "within half the diagonal of a patch"


def test_keypoints_off_the_centres_arrive_where_pixels_are_matched(tmp_path: Path) -> None:
    """An image of noise matched with itself, at whole pixels that are no centres."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    points = [[10.0, 9.0], [33.0, 40.0], [70.0, 22.0]]
    root = write_spair(tmp_path, {"0-a-a:car": {"src_kps": points, "trg_kps": points}}, {"a": image})
    share = {
        places: evaluate(
            RawPatch(8), root, CorrespondenceConfig(resolution=96, places=places, alphas=(0.001,))
        ).metrics["PCK@0.001 per point"]
        for places in ("patches", "pixels")
    }
    assert share == {"patches": 0, "pixels": 1}


def test_presets_fill_in_what_is_left_open(spair: Path) -> None:
    from_settings = CorrespondenceConfig.from_settings
    patch = from_settings({"preset": "patch", "stride": 4, "resolution": 224})
    assert replace(from_settings({"preset": "small", "stride": 4}), preset="patch") == patch
    settings = evaluate(Colour(8), spair, from_settings({"preset": "small", "resolution": 96})).settings
    assert settings["preset"] == "small"
    assert (settings["resolution"], settings["stride"], settings["shape"]) == (96, 8, "square")
    assert "depth" not in settings
    with pytest.raises(ValueError, match="preset is 'big'; use one of: patch, dense_keys, dift"):
        from_settings({"preset": "big"})


def test_the_presets_say_how_they_differ() -> None:
    lines = [line.split() for line in presets("correspond").splitlines()]
    assert lines[0] == ["patch", "dense_keys", "dift", "probe3d", "dinov3", "small"]
    assert ["resolution", "512", "304", "768", "800", "1024", "224"] in lines
    assert ["stride", "None", "4", "None", "None", "None", "None"] in lines


def test_layout_large_comes_first(spair: Path) -> None:
    assert [pair.name for pair in open_pairs(spair, CorrespondenceConfig())] == [
        "000000-a-b:cat",
        "000001-a-b:dog",
        "000002-a-a:dog",
    ]
    (spair / "Layout" / "large").mkdir()
    (spair / "Layout" / "large" / "test.txt").write_text("000001-a-b:dog\n")
    assert len(open_pairs(spair, CorrespondenceConfig())) == 1
    (spair / "Layout" / "large" / "test.txt").write_bytes(b"\xef\xbb\xbf000001-a-b:dog \r\n\r\n000001-a-b:dog")
    assert len(open_pairs(spair, CorrespondenceConfig())) == 1
    assert len(open_pairs(spair, CorrespondenceConfig(layout="small", categories=("dog",)))) == 2


def test_some_pairs_of_each_category(spair: Path) -> None:
    """The same ones in each run, in their order, and not always the first."""
    lines = [f"{i:06d}-a-b:{'cat' if i % 3 else 'dog'}" for i in range(30)]
    for name in lines:
        record = (spair / "PairAnnotation" / "test" / "000001-a-b:dog.json").read_text()
        values = json.loads(record) | {"category": name.partition(":")[2]}
        (spair / "PairAnnotation" / "test" / f"{name}.json").write_text(json.dumps(values))
    (spair / "Layout" / "small" / "test.txt").write_text("\n".join(lines))
    everything = [pair.name for pair in open_pairs(spair, CorrespondenceConfig())]
    drawn = [pair.name for pair in open_pairs(spair, CorrespondenceConfig(pairs_per_category=8))]
    assert drawn == [pair.name for pair in open_pairs(spair, CorrespondenceConfig(pairs_per_category=8))]
    assert drawn == [name for name in everything if name in drawn]
    assert [sum(name.endswith(category) for name in drawn) for category in ("cat", "dog")] == [8, 8]
    assert drawn != everything[:8] + everything[20:28]
    assert len(open_pairs(spair, CorrespondenceConfig(pairs_per_category=15))) == 25


def break_pair(root: Path, **values: Any) -> None:
    path = root / "PairAnnotation" / "test" / "000001-a-b:dog.json"
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"src_kps": [], "trg_kps": []}, "has no keypoints; leave the pair out"),
        ({"src_kps": [[1, 1], [2, 2]]}, "has 2 keypoints in the source and 1 in the target"),
        ({"src_kps": [[float("nan"), 1]]}, "a keypoint that is not a number"),
        ({"trg_bndbox": [5, 5, 5, 5]}, "the target box of .* is empty"),
        ({"trg_kps": None}, "cannot be read as a pair"),
        ({"src_kps": [[1, 2, 3]]}, "cannot be read as a pair"),
        ({"src_kps": [[1e999, 10**400]]}, "cannot be read as a pair"),
        ({"src_bndbox": [0, 0, 9, float("nan")]}, "has a box that is not of numbers"),
        ({"trg_imname": "z.png"}, r"there is no image .*z\.png"),
        ({"trg_imname": "../dog/a.png"}, r"a-b:dog\.json names '../dog/a\.png', which leads out of its folder"),
        ({"trg_imname": "/etc/hosts"}, "which is an absolute path"),
        ({"trg_imname": 7}, "names 7, which is no text"),
        ({"viewpoint_variation": 3}, "has the viewpoint_variation 3; SPair-71k has 0, 1 and 2"),
        ({"category": ".."}, r"names '\.\.', which leads out of its folder"),
    ],
)
def test_words_for_a_bad_pair(spair: Path, values: dict[str, Any], words: str) -> None:
    break_pair(spair, **values)
    with pytest.raises(ValueError, match=words):
        evaluate(Colour(8), spair, CorrespondenceConfig())


def test_words_for_bad_folders_and_settings(spair: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no Layout/large/test.txt or Layout/small/test.txt"):
        evaluate(Colour(8), tmp_path / "nowhere", CorrespondenceConfig())
    with pytest.raises(ValueError, match="no pair is of category fish; the categories are: cat, dog"):
        evaluate(Colour(8), spair, CorrespondenceConfig(categories=("fish",)))
    with pytest.raises(ValueError, match="threshold is 'mask'; use one of: box, image"):
        CorrespondenceConfig(threshold="mask")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alphas is"):
        CorrespondenceConfig(alphas=())
    with pytest.raises(ValueError, match=r"alphas are \[0.1, 0.1\]; name each share once"):
        CorrespondenceConfig(alphas=(0.1, 0.1))
    (spair / "JPEGImages" / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*a\.png"):
        evaluate(Colour(8), spair, CorrespondenceConfig())
    (spair / "PairAnnotation" / "test" / "000000-a-b:cat.json").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*cat\.json; the layout names it"):
        evaluate(Colour(8), spair, CorrespondenceConfig())
    (spair / "Layout" / "small" / "test.txt").write_text("000001-a-b:dog\n../test/000001-a-b:dog\n")
    with pytest.raises(ValueError, match=r"line 2 of .*test\.txt names '../test/.*, which leads out"):
        evaluate(Colour(8), spair, CorrespondenceConfig())
    (spair / "Layout" / "small" / "test.txt").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        evaluate(Colour(8), spair, CorrespondenceConfig())


def test_pairs_whose_target_has_no_contrast_are_named(spair: Path) -> None:
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(spair / "JPEGImages" / "cat" / "b.png")
    result = measure("correspond", Colour(8), None, spair, resolution=96, shape="keep")
    assert result.degenerate == [Degenerate(PATCHES_EQUAL, 1, 3, ["000000-a-b:cat"])]


def test_a_part_of_the_pairs(spair: Path) -> None:
    pairs = open_pairs(spair, CorrespondenceConfig())
    assert [pair.name for pair in open_pairs(spair, CorrespondenceConfig(limit=1))] == [pairs[0].name]
    assert len(pairs) > 1
