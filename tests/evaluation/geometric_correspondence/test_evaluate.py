"""Recall on the sphere: colours that tell the point are found, constants and missing depths are said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.api.evaluate import evaluate as api_evaluate
from selfpatch.api.evaluate import measure
from selfpatch.evaluation.degenerate import PATCHES_EQUAL, Degenerate
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.geometric_correspondence import views
from selfpatch.evaluation.geometric_correspondence.evaluate import NO_SURFACE
from selfpatch.evaluation.result import Result
from tests.evaluation.geometric_correspondence.conftest import Colour

pytestmark = pytest.mark.usefixtures("small_images")
SETTINGS: dict[str, Any] = {"resolution": 64, "every": 1, "max_angle": 70.0, "num_matches": 40}


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images keep their size instead of being enlarged to 1024 pixels."""
    monkeypatch.setattr(views, "STORED", 96)


@pytest.mark.parametrize("preset", ["probe3d", "dinov3"])
def test_points_are_found_by_their_colour(navi: Path, tmp_path: Path, preset: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    result = measure("navi", Colour(4), None, navi, preset=preset, out=out, **SETTINGS)
    assert result.metrics["recall@2cm"] > 0.9
    assert result.metrics["recall@2cm"] > result.metrics["baseline:position recall@2cm"] + 0.2
    assert result.metrics["recall@25px"] > 0.9
    assert sum(int(row["pairs"]) for row in result.rows) == 3
    assert result.degenerate == []
    assert (result.settings["pairs"], result.settings["num_objects"], result.settings["preset"]) == (3, 1, preset)
    assert len(result.pictures) == 3
    assert all((out / picture).is_file() for picture in result.pictures)
    result.save(out / "result.json")
    assert Result.load(out / "result.json") == result


def test_a_wrong_pose_lowers_the_recall(navi: Path, tmp_path: Path) -> None:
    """The second camera is turned to the other side."""
    shutil.copytree(navi / "ball", tmp_path / "ball")
    file = tmp_path / "ball" / "wild_set" / "annotations.json"
    file.write_text(file.read_text().replace('"q": [0.97', '"q": [-0.97'))
    right, wrong = (measure("navi", Colour(4), None, data, **SETTINGS).metrics for data in (navi, tmp_path))
    assert wrong["recall@2cm"] < right["recall@2cm"] - 0.3


def test_constant_features_and_views_without_depth(navi: Path, tmp_path: Path) -> None:
    class Constant(MeanColour):
        def patches(self, images: Tensor) -> Tensor:
            return torch.ones_like(super().patches(images))

    result = measure("navi", Constant(4), None, navi, **SETTINGS)
    assert result.degenerate == [Degenerate(PATCHES_EQUAL, 3, 3, [*result.per_image])]
    shutil.copytree(navi / "ball", tmp_path / "ball")
    Image.new("I;16", (128, 96)).save(tmp_path / "ball" / "wild_set" / "depth" / "002.png")
    (found,) = measure("navi", Colour(4), None, tmp_path, **SETTINGS).degenerate
    assert (found.what, found.total) == (NO_SURFACE, 3)
    assert all("002" in item for item in found.items)
    for path in (tmp_path / "ball" / "wild_set" / "depth").iterdir():
        Image.new("I;16", (128, 96)).save(path)
    with pytest.raises(ValueError, match=r"no view of .* shows a surface; check the depth maps"):
        measure("navi", Colour(4), None, tmp_path, **SETTINGS)


def test_a_dry_run_counts_both_views(navi: Path, tmp_path: Path) -> None:
    shutil.copytree(navi / "ball", tmp_path / "ball")
    for path in (tmp_path / "ball" / "wild_set" / "images").iterdir():
        path.write_bytes(b"no image")
    report = api_evaluate("navi", Colour(4), tmp_path, dry_run=True, **SETTINGS)
    assert "3" in str(report.data["pairs"])


def test_words_for_other_encoders(navi: Path) -> None:
    with pytest.raises(ValueError, match="takes images of 4 channels; navi needs one of RGB images"):
        measure("navi", MeanColour(4, channels=4), None, navi, **SETTINGS)
