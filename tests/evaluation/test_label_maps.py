"""Label maps: numbers come back as stored from every mode that holds numbers, and no colour is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.label_maps import read_label_map

NUMBERS = np.array([[0, 1, 200], [255, 7, 1]], np.uint8)


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette([255 - n for n in range(256) for _ in range(3)])
    return image


@pytest.mark.parametrize(
    ("picture", "values", "grey"),
    [
        (Image.fromarray(NUMBERS), NUMBERS, True),
        (palette(NUMBERS), NUMBERS, False),
        (Image.fromarray(NUMBERS.astype(np.uint16) + 1000), NUMBERS.astype(int) + 1000, True),
        (Image.fromarray(NUMBERS > 1), NUMBERS > 1, True),
        (Image.fromarray(NUMBERS).convert("LA"), NUMBERS, True),
        (Image.fromarray(NUMBERS).convert("RGB"), NUMBERS, True),
        (Image.fromarray(NUMBERS).convert("RGBA"), NUMBERS, True),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_numbers_come_back_as_stored(tmp_path: Path, picture: Image.Image, values: np.ndarray, grey: bool) -> None:
    picture.save(tmp_path / "a.png")
    found = read_label_map(tmp_path / "a.png", "the labels")
    assert found.values.dtype == np.int64
    assert (found.values.tolist(), found.grey) == (values.astype(int).tolist(), grey)


def test_few_indices_of_a_palette_are_not_spread(tmp_path: Path) -> None:
    """A palette of two colours is stored with one bit per pixel."""
    palette(np.array([[0, 1, 1]], np.uint8)).save(tmp_path / "a.png", bits=1)
    assert read_label_map(tmp_path / "a.png", "the labels").values.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("picture", "file_format", "reason"),
    [
        (Image.new("RGB", (2, 2), (128, 0, 0)), "PNG", "it is a picture of mode RGB; give a palette or grey PNG"),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 255)), "PNG", "it is a picture of mode RGBA; give a palette or grey PNG"),
        (Image.new("LA", (2, 2), (1, 254)), "PNG", "it is a picture of mode LA with transparent pixels"),
        (Image.new("RGBA", (2, 2), (1, 1, 1, 0)), "PNG", "it is a picture of mode RGBA with transparent pixels"),
        (Image.new("CMYK", (2, 2)), "TIFF", "it is a picture of mode CMYK; give"),
        (Image.new("F", (2, 2), 1.5), "TIFF", "it is a picture of mode F; give"),
        (Image.new("I", (2, 2), -1), "TIFF", "it is a picture of mode I; give"),
        (Image.new("L", (2, 2), 1), "JPEG", "it is a JPEG file, which blurs numbers"),
    ],
)
def test_colours_are_no_numbers(tmp_path: Path, picture: Image.Image, file_format: str, reason: str) -> None:
    picture.save(tmp_path / "a.png", file_format)
    with pytest.raises(ValueError, match=rf"^cannot read the labels .*a\.png: {reason}"):
        read_label_map(tmp_path / "a.png", "the labels")
