"""A damaged file of any format is read or is a BadImage, for every reader, and never ends the process."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import BadImage, read_image, read_picture
from tests.helpers.damaged_images import READERS, damaged, originals, read_all, run

FORMATS = tuple(originals())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_undamaged_files_of_every_encoding_are_read(tmp_path: Path, name: str) -> None:
    for content in originals()[name]:
        (tmp_path / "image").write_bytes(content)
        assert "read" in dict(read_all(tmp_path / "image")).values()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "tiff of 13 channels"])
def test_all_readers_agree(tmp_path: Path, name: str) -> None:
    """Grey, colour, CMYK, palettes, alpha, 1 and 16 bits, animations and turned images have the same pixels in each."""
    for content in originals()[name]:
        (tmp_path / "image").write_bytes(content)
        plain = read_image(tmp_path / "image")
        fast = read_fast(tmp_path / "image")
        assert isinstance(fast, Raster)
        colours = fast.pixels.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(colours, np.asarray(plain))
        for channels in (1, 2, 4):
            with contextlib.suppress(BadImage):  # it has another number
                raster = read_picture(tmp_path / "image", channels)
                assert isinstance(raster, Raster)
                assert raster.size == plain.size
                if raster.pixels.dtype == torch.uint8 and plain_mode(content) != "CMYK":
                    shown = raster.pixels[: 1 if channels < 3 else 3].permute(1, 2, 0).numpy()
                    np.testing.assert_array_equal(shown, colours[..., : shown.shape[2]])


def plain_mode(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as image:
        return image.mode


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_a_bad_image(tmp_path: Path, name: str) -> None:
    files = originals()[name]
    outcomes = Counter[str]()
    for number in range(3 * len(files)):
        content = damaged(files[number % len(files)], np.random.default_rng([1, number]))
        (tmp_path / "image").write_bytes(content)
        outcomes.update(outcome for _, outcome in read_all(tmp_path / "image"))
    assert set(outcomes) <= {"read", "BadImage"}
    assert outcomes["BadImage"]


def test_a_damaged_tiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.tif", compression="tiff_adobe_deflate")
    content = (tmp_path / "image.tif").read_bytes()
    (tmp_path / "image.tif").write_bytes(content[:60] + b"\xff" * 840 + content[900:])
    with pytest.raises(BadImage):
        read_image(tmp_path / "image.tif")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_no_reader_ends_its_process() -> None:
    for name in FORMATS:
        outcomes, faults, memory = run(name, 0, 50, seed=2)
        assert not faults
        assert sum(outcomes.values()) == 50 * len(READERS)
        assert memory > 0
