"""Object discovery from a folder to CorLoc: boxes counted by hand, any size of image, wrong settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfpatch.api.evaluate import measure
from selfpatch.core.console import console
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.dataset import open_images
from selfpatch.evaluation.object_discovery.evaluate import evaluate
from selfpatch.evaluation.result import Output, Result
from selfpatch.ops import discovery
from tests.evaluation.object_discovery.conftest import ColourAgainstGround, square, tiny_vit, write_voc


def test_corloc_counted_by_hand(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = measure("discover", ColourAgainstGround(8), None, voc, out=out)
    for method in ("lost", "tokencut"):
        assert result.metrics[f"CorLoc {method}"] == pytest.approx(2 / 3)
        assert [values[f"CorLoc {method}"] for values in result.per_image.values()] == [1, 0, 1]
    assert list(result.per_image) == ["met", "missed", "second"]
    # The whole image holds the object at 1280 / 8080, and is the first box of `second` itself.
    assert result.metrics["CorLoc baseline:whole-image"] == pytest.approx(1 / 3)
    whole = next(row for row in result.rows if row["method"] == "baseline:whole-image")
    assert whole["mean IoU"] == pytest.approx((1280 / 8080 + 400 / 8080 + 1) / 3)
    assert (result.settings["images"], result.settings["images_without_boxes"]) == (3, 1)
    assert Result.load(out / "result.json") == result
    assert all((out / picture).is_file() for picture in result.pictures)
    assert len(result.pictures) == 3


def test_two_objects_of_one_image_give_two_boxes(tmp_path: Path) -> None:
    """Of distinct colours on a ground: MaskCut finds both, TokenCut one, so that recalls are 1 and 1/2."""
    pixels = square(16, 16, 40, 40, size=(80, 104))
    pixels[40:72, 64:96] = (240, 30, 20)
    boxes = [((17, 17, 40, 40), ""), ((65, 41, 96, 72), "")]
    voc = write_voc(tmp_path, {"two": (pixels, boxes), "again": (pixels[:, ::-1].copy(), [
        ((105 - right, top, 105 - left, bottom), mark) for (left, top, right, bottom), mark in boxes
    ])})  # fmt: skip
    config = ObjectDiscoveryConfig(methods=("tokencut", "maskcut"))
    (tmp_path / "out").mkdir()
    result = evaluate(ColourAgainstGround(8), voc, config, Output(tmp_path / "out"))
    assert result.degenerate == []
    of_tokencut, of_maskcut, *baselines = result.rows
    assert (of_maskcut["boxes"], of_maskcut["AP50"], of_maskcut["AP"], of_maskcut["AR"]) == (4, 1, 1, 1)
    assert (of_tokencut["boxes"], of_tokencut["AR"]) == (2, 0.5)
    assert result.metrics["AP50 maskcut"] == 1
    assert [row["method"] for row in baselines] == ["baseline:whole-image", "baseline:centre"]
    one = evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(methods=("maskcut",), max_objects=1))
    assert one.metrics["AR maskcut"] == 0.5
    assert len(result.pictures) == 2


def test_images_of_too_many_patches_for_a_cut_are_left_out_and_named(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`met` and `missed` come before and after it, and are kept."""
    box = [((25, 17, 64, 48), "")]
    images = {"met": (square(24, 16, 64, 48), box), "wide": (square(24, 16, 64, 48, size=(80, 909)), box)}
    voc = write_voc(tmp_path / "VOC2012", {**images, "missed": (square(24, 16, 64, 48), [((1, 1, 20, 20), "")])})
    monkeypatch.setattr(discovery, "MAX_PATCHES", 200)
    result = evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(methods=("lost", "tokencut")))
    assert list(result.per_image) == ["met", "missed"]
    assert {name: result.metrics[f"CorLoc {name}"] for name in ("lost", "tokencut")} == {"lost": 0.5, "tokencut": 0.5}
    assert (result.settings["images"], result.rows[0]["images"]) == (2, 2)
    assert result.notes == [
        "1 image has more than 60000 patches, which a normalised cut cannot compare, left out: wide; use smaller "
        "images, or --methods lost"
    ]
    assert list(evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(methods=("lost",))).per_image) == [
        "met", "wide", "missed",
    ]  # fmt: skip
    monkeypatch.setattr(discovery, "MAX_PATCHES", 20)
    with pytest.raises(
        ValueError, match=r"^no image of .* can be used: each has more than 60000 patches, .*; use smaller"
    ):
        evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(methods=("tokencut",)))


def test_the_table_fits_a_terminal(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(methods=("lost", "tokencut", "maskcut")))
    console.print(result.table())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:3] == ["baseline:whole-image", "3", "0.3333"] for line in lines), "nothing is folded"


def test_hard_boxes_can_be_left_out(voc: Path) -> None:
    result = evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(hard=False, methods=("lost",)))
    assert list(result.per_image) == ["met", "second"]
    assert result.metrics["CorLoc lost"] == 0.5


def test_attention_boxes_and_their_heads(voc: Path) -> None:
    encoder = tiny_vit()
    for head in (None, 0, 1):
        result = evaluate(encoder, voc, ObjectDiscoveryConfig(methods=("attention",), head=head))
        assert set(result.per_image["met"]) == {"CorLoc attention"}
        assert result.settings["head"] == ("mean" if head is None else head)
    with pytest.raises(ValueError, match="head is 2, but the network has 2 heads; use 0 to 1"):
        evaluate(encoder, voc, ObjectDiscoveryConfig(methods=("attention",), head=2))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 300), (9, 8)])
def test_any_size_of_image_and_grey(tmp_path: Path, height: int, width: int) -> None:
    grey = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    voc = write_voc(tmp_path, {"odd": (grey, [((1, 1, width, height), "")])})
    result = evaluate(
        tiny_vit(), voc, ObjectDiscoveryConfig(methods=("lost", "tokencut", "attention")), Output(tmp_path / "out")
    )
    assert result.metrics["CorLoc baseline:whole-image"] == 1
    if (height, width) == (1, 1):
        assert result.metrics["CorLoc lost"] == 1, "the only patch, cut at the image's border"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"methods": ("lots",)}, r"methods\[0\] is 'lots'; use one of: lost, tokencut, maskcut, attention"),
        ({"methods": ()}, "methods is"),
        ({"methods": ("lost", "lost")}, "name each method once"),
        ({"methods": ("attention",)}, "attention boxes need a ViT with a class token"),
        ({"facet": "key"}, "facet is 'key', but only a ViT"),
        ({"block": 2}, "block is 2, but a ColourAgainstGround has no layers to choose from"),
        ({"output_stride": 16}, "output_stride is 16, but a ColourAgainstGround cannot be dilated"),
        ({"dilate": False}, "dilate is False, but no stage loses its stride"),
        ({"facet": "keys"}, "facet is 'keys'; use one of: key, query, value, token"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"split": "test"}, "the splits of .* are: trainval"),
        ({"image_list": "nowhere.txt"}, "there is no list of images"),
    ],
)
def test_words_for_wrong_settings(voc: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(**settings))


def test_real_images(data_dir: Path) -> None:
    """The boxes of the 40 images are those of their source, as the known score of the baseline shows."""
    result = evaluate(MeanColour(32), data_dir / "voc_style", ObjectDiscoveryConfig(methods=("lost",)))
    assert result.settings["images"] == 40
    assert result.metrics["CorLoc baseline:whole-image"] == pytest.approx(0.25)
    coco = open_images(data_dir / "coco_mini", ObjectDiscoveryConfig(split="val2017"))
    assert len(coco) == 30
    assert sum(len(image.boxes) for image in coco) == 414 - 7, "all but the crowds"


def test_a_part_of_the_images_with_objects(voc: Path) -> None:
    result = evaluate(ColourAgainstGround(8), voc, ObjectDiscoveryConfig(limit=2, methods=("lost",)))
    assert list(result.per_image) == ["met", "second"]
    assert (result.settings["images"], result.settings["images_without_boxes"]) == (2, 1)
