"""Picture sheets of small encoders whose features are the colours of the patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from selfpatch.visualization.colours import patch_map, pca_colours, unit_patch_features
from selfpatch.visualization.layout import GAP, HEADING_HEIGHT, MARGIN
from selfpatch.visualization.sheet import COLUMNS, TILE, picture_sheet
from tests.helpers.colour_encoder import ColourEncoder, ConvolutionEncoder


def test_picture_sheet_has_a_tile_for_each_image(crops: Tensor, tmp_path: Path) -> None:
    path = picture_sheet({"colours": ColourEncoder()}, crops, tmp_path / "pictures" / "0001.png", title="epoch 1")
    with Image.open(path) as plain:
        assert plain.width == 2 * MARGIN + 3 * TILE + 2 * GAP
        height = plain.height
        corner = np.asarray(plain.convert("RGB"))[-MARGIN - TILE : -MARGIN, MARGIN : MARGIN + TILE]
    assert len(np.unique(corner.reshape(-1, 3), axis=0)) <= 16  # 4 x 4 patches, each of one colour
    assert (corner[0, : TILE // 4] == corner[0, 0]).all()

    networks = {"colours": ColourEncoder(), "convolution": ConvolutionEncoder()}
    path = picture_sheet(networks, crops, tmp_path / "both.png", title="epoch 1")
    with Image.open(path) as compared:
        assert compared.height > height + TILE


def test_wide_images_keep_their_shape(crops: Tensor, tmp_path: Path) -> None:
    size = crops.shape[-1]
    path = picture_sheet({"colours": ColourEncoder()}, crops[..., : size // 4, :], tmp_path / "wide.png", title="wide")
    with Image.open(path) as sheet:
        assert sheet.width == 2 * MARGIN + 3 * 2 * TILE + 2 * GAP
        bottom = np.asarray(sheet.convert("RGB"))[-MARGIN - TILE // 2 : -MARGIN, MARGIN : MARGIN + 2 * TILE]
    assert len(np.unique(bottom.reshape(-1, 3), axis=0)) <= 4  # a row of 4 patches, each of one colour


def test_each_network_of_a_sheet_has_a_row_of_its_own_colours(crops: Tensor, tmp_path: Path) -> None:
    """Networks of different patch sizes stand one below the other, each as it is alone."""
    fine, coarse = ColourEncoder(), ColourEncoder()
    fine.patch_size = 8
    path = picture_sheet({"fine": fine, "coarse": coarse, "again": fine}, crops, tmp_path / "sheet.png", title="t")
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    pitch = TILE + HEADING_HEIGHT + GAP
    for above, network in enumerate([fine, coarse, fine]):
        bottom = len(sheet) - MARGIN - (2 - above) * pitch
        colours = pca_colours(unit_patch_features(network, crops))
        for column in range(3):
            left = MARGIN + column * (TILE + GAP)
            drawn = sheet[bottom - TILE : bottom, left : left + TILE]
            np.testing.assert_array_equal(drawn, np.asarray(patch_map(colours[column], (TILE, TILE))))


def test_a_sheet_needs_images_that_every_network_can_cut(crops: Tensor, tmp_path: Path) -> None:
    fine, coarse = ColourEncoder(), ColourEncoder()
    fine.patch_size = 7
    with pytest.raises(
        ValueError, match=r"64 x 64 pixels cannot be cut into patches of 7 for fine; .* multiples of 112"
    ):
        picture_sheet({"coarse": coarse, "fine": fine}, crops, tmp_path / "none.png", title="t")
    with pytest.raises(ValueError, match="no network"):
        picture_sheet({}, crops, tmp_path / "none.png", title="t")
    assert not (tmp_path / "none.png").exists()


def test_picture_sheet_is_the_same_every_time(crops: Tensor, tmp_path: Path) -> None:
    files = [
        picture_sheet({"colours": ColourEncoder()}, crops, tmp_path / f"{i}.png", title="t").read_bytes()
        for i in range(2)
    ]
    assert files[0] == files[1]


def test_picture_sheet_breaks_long_rows(crops: Tensor, tmp_path: Path) -> None:
    path = picture_sheet({"colours": ColourEncoder()}, crops.repeat(4, 1, 1, 1), tmp_path / "s.png", title="t")
    with Image.open(path) as image:
        assert image.width == 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
        assert image.height > 4 * TILE


def test_picture_sheet_of_a_diverged_network_is_drawn(crops: Tensor, tmp_path: Path) -> None:
    encoder = ConvolutionEncoder()
    nn.init.constant_(encoder.convolution.weight, float("nan"))
    assert picture_sheet({"diverged": encoder}, crops, tmp_path / "nan.png", title="t").exists()
    with pytest.raises(ValueError, match="at least one"):
        picture_sheet({"diverged": encoder}, crops[:0], tmp_path / "none.png", title="t")
