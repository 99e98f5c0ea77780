"""Retrieval of plain colours, sizes of what is encoded, presets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from selfpatch.api.evaluate import evaluate as api_evaluate
from selfpatch.api.evaluate import measure
from selfpatch.evaluation.degenerate import IMAGES_EQUAL, Degenerate
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.retrieval.config import RetrievalConfig
from selfpatch.evaluation.retrieval.evaluate import evaluate, image_feature, trimmed
from tests.evaluation.retrieval.conftest import COLOURS, TRUTHS, write_retrieval


class Watched(MeanColour):
    """Mean colours about grey, so that directions tell colours apart; notes the sizes of images."""

    def __init__(self) -> None:
        super().__init__(8)
        self.sizes: list[tuple[int, ...]] = []

    def image(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        return super().image(images - 0.5)


def test_cropped_queries_find_their_colour(tmp_path: Path) -> None:
    data, out = write_retrieval(tmp_path / "data"), tmp_path / "out"
    result = measure("retrieval", Watched(), None, data, preset="dinov3", out=out)
    assert result.metrics["mAP easy"] == result.metrics["mAP medium"] == result.metrics["mAP hard"] == 1
    assert result.metrics["mP@1 medium"] == 1
    assert [(row["level"], row["queries"]) for row in result.rows] == [("easy", 2), ("medium", 2), ("hard", 1)]
    assert result.per_image["query_1.png"] == {"AP easy": 1.0, "AP medium": 1.0}
    assert Result.load(out / "result.json") == result
    assert len(result.pictures) == 2
    assert all((out / picture).is_file() for picture in result.pictures)


def test_whole_queries_are_encoded_as_they_are(tmp_path: Path) -> None:
    """The blue around the boxes pulls the queries to blue, which `dinov3` crops away."""
    data, encoder = write_retrieval(tmp_path / "data"), Watched()
    whole = measure("retrieval", encoder, None, data)
    assert encoder.sizes == [(40, 48)] * 8
    encoder = Watched()
    measure("retrieval", encoder, None, data, crop_queries=True)
    assert encoder.sizes == [(40, 48)] * 6 + [(24, 32)] * 2
    assert whole.settings["images"] == 6
    assert not whole.pictures


def test_a_wrong_truth_lowers_the_score(tmp_path: Path) -> None:
    truths = [{**TRUTHS[0], "easy": [4], "hard": []}, TRUTHS[1]]
    result = evaluate(Watched(), write_retrieval(tmp_path / "data", truths), RetrievalConfig(crop_queries=True))
    assert result.per_image["query_0"]["AP medium"] < 0.5
    assert result.metrics["mAP medium"] == pytest.approx((result.per_image["query_0"]["AP medium"] + 1) / 2)
    assert "mAP hard" not in result.metrics
    assert result.notes == ["No query has a positive at level hard."]


def test_a_set_without_positives_is_refused(tmp_path: Path) -> None:
    truths = [{"bbx": None, "easy": [], "hard": [], "junk": [0]}] * 2
    data = write_retrieval(tmp_path / "data", truths)
    with pytest.raises(ValueError, match=r"no query of .* has an easy or a hard image; check gnd"):
        evaluate(Watched(), data, RetrievalConfig())
    with pytest.raises(ValueError, match=r"has queries without bbx; give --no-crop-queries"):
        evaluate(Watched(), data, RetrievalConfig(crop_queries=True))


def test_long_sides_are_shrunk_and_never_enlarged() -> None:
    encoder, config = Watched(), RetrievalConfig(resolution=64)
    for size in ((200, 100), (100, 200), (30, 20), (4, 3)):
        image_feature(encoder, Image.new("RGB", size), config)
    assert encoder.sizes == [(32, 64), (64, 32), (16, 24), (8, 8)]


def test_an_image_is_resized_as_the_released_code_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    image = Image.fromarray(pixels)
    feature = image_feature(Watched(), image, RetrievalConfig(resolution=64))
    image.thumbnail((64, 64), Image.Resampling.LANCZOS)
    expected = np.asarray(image, np.float32).mean((0, 1)) / 255 - 0.5
    assert image.size == (64, 48)
    assert feature.numpy() == pytest.approx(expected, abs=1e-5)


def test_several_scales_are_averaged() -> None:
    encoder = Watched()
    image_feature(encoder, Image.new("RGB", (64, 48)), RetrievalConfig(resolution=64, multiscale=True))
    assert encoder.sizes == [(48, 64), (32, 40), (24, 32)]


def test_trimming_keeps_whole_patches() -> None:
    pixels = torch.arange(2 * 11 * 21.0).reshape(1, 2, 11, 21)
    assert torch.equal(trimmed(pixels, 8, centre=False), pixels[..., :8, :16])
    assert torch.equal(trimmed(pixels, 8, centre=True), pixels[..., 1:9, 2:18])


def test_the_table_fits_80_columns(tmp_path: Path) -> None:
    result = evaluate(Watched(), write_retrieval(tmp_path / "data"), RetrievalConfig())
    console = Console(width=80, file=io.StringIO())
    console.print(result.table())
    assert "medium" in console.file.getvalue()
    assert "…" not in console.file.getvalue()


def test_a_dry_run_counts_all_images(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path / "data")
    for image in (data / "jpg").iterdir():
        image.write_bytes(b"no image")
    report = api_evaluate("retrieval", Watched(), data, dry_run=True, device="cpu")
    assert f"{len(COLOURS)}" in str(report)
    with pytest.raises(ValueError, match="cannot read"):
        api_evaluate("retrieval", Watched(), data, device="cpu")


def test_an_encoder_of_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes images of 1 channel;"):
        evaluate(MeanColour(8, channels=1), write_retrieval(tmp_path / "data"), RetrievalConfig())


def test_constant_features_are_said(tmp_path: Path) -> None:
    class Constant(Watched):
        def image(self, images: Tensor) -> Tensor:
            return torch.ones_like(super().image(images))

    data = write_retrieval(tmp_path / "data")
    assert measure("retrieval", Constant(), None, data).degenerate == [Degenerate(IMAGES_EQUAL)]
    assert measure("retrieval", Watched(), None, data).degenerate == []
