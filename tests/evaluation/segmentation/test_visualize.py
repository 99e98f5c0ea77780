"""The sheet of a segmentation, and its legend of the classes that it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation import pictures
from selfpatch.evaluation.segmentation import visualize
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.visualize import PALETTE, SHEET_WIDTH, overlay_row, save_rows


def test_the_legend_names_the_classes_that_are_shown_in_their_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: dict[str, tuple[int, ...]] = {}

    def legend(given: dict[str, tuple[int, ...]], width: int) -> Image.Image:
        entries.update(given)
        return pictures.legend(given, width)

    monkeypatch.setattr(visualize, "legend", legend)
    truth = np.zeros((20, 30), int)
    truth[:5] = IGNORE
    prediction = np.where(np.arange(30) < 15, 2, 4)[None].repeat(20, 0)
    row = overlay_row(Image.new("RGB", (30, 20)), truth, prediction)
    file = "pictures/segments.jpg"
    assert save_rows([row, row], ["sky", "car", "tree"], tmp_path) == [file]
    assert [*entries] == ["sky", "tree", "cluster 4", "void"], "the car is not shown"
    assert entries["tree"] == tuple(PALETTE[2].tolist())
    sheet = np.asarray(Image.open(tmp_path / file)).astype(int)
    assert sheet.shape[1] == SHEET_WIDTH
    for name, colour in entries.items():
        swatch = (np.abs(sheet[-pictures.LINE_HEIGHT :] - colour) < 16).all(-1).sum()  # JPEG blurs its edges
        assert swatch > 100, f"the swatch of {name} is drawn"
    assert save_rows([row], ["sky"], None) == []


def test_the_background_has_no_colour() -> None:
    image = Image.new("RGB", (40, 20), (10, 20, 30))
    truth = np.zeros((20, 40), int)
    truth[:, 20:] = 1
    (plain, labels, prediction), shown = overlay_row(image, truth, truth * 0 + 1, ["background", "swan"])
    assert shown == {1}
    assert labels.getpixel((40, 80)) == plain.getpixel((40, 80)) == (10, 20, 30)
    assert labels.getpixel((240, 80)) == prediction.getpixel((40, 80)) != (10, 20, 30)


def test_a_legend_takes_as_many_lines_as_its_names_need() -> None:
    names = {f"class number {i}": (i, 0, 0) for i in range(10)}
    drawn = np.asarray(pictures.legend(names, 300))
    assert drawn.shape == (5 * pictures.LINE_HEIGHT, 300, 3)
    assert all((drawn == colour).all(-1).any() for colour in names.values())
