"""View matching as an evaluation: pinned numbers, any source of images, unreadable files, words for wrong settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfpatch.api.evaluate import compare, evaluate
from selfpatch.cli.main import main
from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multicrop import ViewRecipe, dino_views
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.degenerate import PATCHES_EQUAL, Degenerate
from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.evaluation.pictures import LINE_HEIGHT
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.view_matching.dataset import load_pairs
from selfpatch.evaluation.view_matching.evaluate import view_matching
from tests.evaluation.view_matching.conftest import smooth_pictures
from tests.helpers.shard_files import write_shard

SETTINGS: dict[str, Any] = {"resolution": 32, "seed": 5}
PINNED = [(MeanColour(4), 12 / 61), (RawPatch(4), 25 / 61), (MeanColour(8), 29 / 69)]
"""Shares of the smooth pictures as the first version of the metric measured them."""


@pytest.mark.parametrize(("encoder", "share"), PINNED)
def test_pinned_numbers(pictures: Path, encoder: MeanColour, share: float) -> None:
    """The meter of a training and the command measure the same, whatever the number of pairs encoded at once."""
    recipes = dino_views(CropConfig(global_size=32))
    _, pairs = load_pairs(ImageIndex.open(pictures), np.arange(6), (recipes[0], recipes[1]), seed=5)
    for batch in (1, 4, 32):
        assert view_matching(encoder, pairs, batch=batch) == pytest.approx(share)
        result = evaluate("match", encoder, pictures, encode_batch=batch, **SETTINGS)
        assert result.metrics["matched"] == pytest.approx(share)


def test_wide_views_are_measured_as_in_a_training_on_wide_crops(pictures: Path, tmp_path: Path) -> None:
    recipes = dino_views(CropConfig(global_size=(16, 40)))
    _, pairs = load_pairs(ImageIndex.open(pictures), np.arange(6), (recipes[0], recipes[1]), seed=5)
    result = evaluate(
        "match", RawPatch(4), pictures, out=tmp_path / "out", **SETTINGS | {"resolution": [16, 40]}, max_pictures=1
    )
    assert result.metrics["matched"] == pytest.approx(view_matching(RawPatch(4), pairs))
    assert result.settings["resolution"] == [16, 40]
    with Image.open(tmp_path / "out" / result.pictures[0]) as picture:
        assert picture.width / (picture.height - LINE_HEIGHT) == pytest.approx(2 * 40 / 16, rel=0.01)
    with pytest.raises(ValueError, match=r"resolution is 16 x 42, .* use e\.g\. 16 x 40"):
        evaluate("match", RawPatch(4), pictures, resolution=(16, 42))


def test_identical_views_are_found(pictures: Path) -> None:
    whole = ViewRecipe(size=32, scale=(1.0, 1.0))
    _, pairs = load_pairs(ImageIndex.open(pictures), np.arange(6), (whole, whole))
    assert view_matching(RawPatch(8), pairs) == 1.0


def test_a_result(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate("match", RawPatch(4), pictures, out=out, max_pictures=2, **SETTINGS)
    assert Result.load(out / "result.json") == result
    (row,) = result.rows
    assert set(row) == {"images", "patches", "matched", "baseline:chance"}
    assert row["images"] == len(result.per_image) <= 6
    assert all(0 <= values["matched"] <= 1 for values in result.per_image.values())
    assert 0 < result.metrics["baseline:chance"] < 9 / 64
    assert result.settings.items() >= {"images": 6, "unreadable": 0, "patch_size": 4, "data": str(pictures)}.items()
    assert "encode_batch" not in result.settings
    assert result.pictures == [f"pictures/0000{i}-{i}.jpg" for i in (0, 5)]
    assert all((out / picture).is_file() for picture in result.pictures)


def test_results_can_be_compared(pictures: Path) -> None:
    results = [evaluate("match", kind(4), pictures, **SETTINGS) for kind in (MeanColour, RawPatch)]
    rows = {row.title: row for row in compare(results, draws=50).rows}
    means = rows[f"matched, mean of {len(results[0].per_image)}"]
    assert means.difference_intervals[1] is not None
    with pytest.raises(ValueError, match="patch_size is 4 in result 1 and 8 in result 2"):
        compare([results[0], evaluate("match", MeanColour(8), pictures, **SETTINGS)])


def test_folders_lists_and_shards_give_the_same(pictures: Path, tmp_path: Path) -> None:
    expected = evaluate("match", MeanColour(8), pictures, **SETTINGS)
    lines = tmp_path / "list.txt"
    lines.write_text("".join(f"pictures/{i}.png\n" for i in range(6)))
    shard = write_shard(
        tmp_path / "shards" / "a.tar", {f"{i}.png": (pictures / f"{i}.png").read_bytes() for i in range(6)}
    )
    for data in (lines, shard, shard.parent):
        result = evaluate("match", MeanColour(8), data, **SETTINGS)
        assert (result.metrics, result.rows) == (expected.metrics, expected.rows)


def test_a_limit_is_spread_evenly(pictures: Path) -> None:
    result = evaluate("match", MeanColour(8), pictures, limit=3, global_scale=(0.9, 1.0), **SETTINGS)
    assert list(result.per_image) == ["0.png", "2.png", "5.png"]


def test_unreadable_images_are_noted_and_change_no_other(pictures: Path, tmp_path: Path) -> None:
    settings = {"global_scale": (0.9, 1.0), **SETTINGS}
    before = evaluate("match", MeanColour(8), pictures, **settings)
    for name in ("2.png", "3.png"):
        (pictures / name).write_bytes(b"no image")
    after = evaluate("match", MeanColour(8), pictures, encode_batch=2, out=tmp_path / "out", **settings)
    assert after.notes == ["2 images could not be read, left out: 2.png, 3.png"]
    assert (after.settings["images"], after.settings["unreadable"]) == (4, 2)
    assert after.per_image == {name: v for name, v in before.per_image.items() if name not in ("2.png", "3.png")}
    assert len(after.pictures) == 4
    for i in range(6):
        (pictures / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image can be read \(6 tried\), e.g. cannot read .*0\.png"):
        evaluate("match", MeanColour(8), pictures, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resolution": 36}, "resolution is 36, no multiple of the patch size 8; use e.g. 32"),
        ({"resolution": 3}, "resolution is 3, no multiple of the patch size 8; use e.g. 8"),
        ({"global_scale": (0.5, 0.2)}, r"global_scale is \[0.5, 0.2\]; use \[low, high\]"),
        ({"global_scale": (1e-4, 1e-4), "resolution": 16}, "no two views of an image overlap \\(6 pairs"),
        ({"blur": (0.5, 0.5, 0.5)}, "blur is "),
        ({"limit": 0}, "limit is 0; use a number above 0"),
    ],
)
def test_words_for_wrong_settings(pictures: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate("match", MeanColour(8), pictures, **settings)


def test_a_dry_run_reads_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no image")
    command = f"evaluate match --weights baseline:mean-colour:8 --data {folder} --resolution 32 --dry-run"
    assert main(command.split()) == 0
    assert "3 " in capsys.readouterr().out
    assert main(command.replace("32", "36").split()) == 2


def test_grey_pictures_of_another_number_of_channels(tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for i, picture in enumerate(smooth_pictures()):
        picture.convert("L").save(folder / f"{i}.png")
    result = evaluate("match", RawPatch(8, 1), folder, out=tmp_path / "out", **SETTINGS)
    assert result.metrics["matched"] > result.metrics["baseline:chance"]
    assert (tmp_path / "out" / result.pictures[0]).is_file()


def test_images_without_contrast_are_named(pictures: Path) -> None:
    Image.new("RGB", (90, 80), (90, 80, 70)).save(pictures / "3.png")
    plain = {"jitter": 0.0, "blur": (0.0, 0.0), "solarize": (0.0, 0.0)}
    result = evaluate("match", RawPatch(4), pictures, **SETTINGS, **plain)
    assert result.degenerate == [Degenerate(PATCHES_EQUAL, 1, 6, ["3.png"])]


def test_images_whose_views_lie_apart_are_told_of(pictures: Path) -> None:
    result = evaluate("match", RawPatch(8), pictures, resolution=16, global_scale=(0.05, 0.06), seed=1)
    overlapping = result.rows[0]["images"]
    assert isinstance(overlapping, int)
    assert 0 < overlapping < 6
    assert f"not counted: {6 - overlapping} of 6 images, whose views share no patch" in result.notes
