"""`show` with a small encoder whose features are the colours of the patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from torch import nn

from selfpatch.visualization.config import ShowConfig
from selfpatch.visualization.layout import GAP, MARGIN, SERIES
from selfpatch.visualization.show import PANEL, TALL_PANEL, _distinct_names, _targets, show
from tests.helpers.colour_encoder import ColourEncoder, ConvolutionEncoder


@pytest.mark.slow
def test_show_writes_one_picture_an_image(photos: list[Path], tmp_path: Path) -> None:
    written = show(ColourEncoder(), photos, tmp_path / "out", ShowConfig(resolution=96))
    assert [path.name for path in written] == ["a-astronaut.png", "b-astronaut.png"]
    sizes = [(PANEL, PANEL // 2), (TALL_PANEL, 2 * TALL_PANEL)]  # 192 x 96, then 96 x 192
    for path, (width, height) in zip(written, sizes, strict=True):
        with Image.open(path) as picture:
            assert picture.width == 2 * MARGIN + 5 * width + 4 * GAP
            assert 2 * height < picture.height < 2 * height + 250


@pytest.mark.slow
def test_show_is_the_same_every_time(photos: list[Path], tmp_path: Path) -> None:
    once, again = (
        show(ColourEncoder(), photos[:1], tmp_path / name, ShowConfig(resolution=96))[0] for name in ("once", "again")
    )
    assert once.read_bytes() == again.read_bytes()


def test_pictures_of_equal_names_are_told_apart_by_folders_whatever_their_order() -> None:
    paths = ["dog/480/0.jpg", "cow/480/0.jpg", "dog/720/0.png", "1.jpg", "./x/../1.jpg"]
    names = [str(Path(*parts)) for parts in (("dog", "480", "0.jpg"), ("cow", "480", "0.jpg"), ("720", "0.png"))]
    assert [str(name) for name in _distinct_names(paths)] == [*names, "1.jpg", "1.jpg"]
    assert [str(name) for name in _distinct_names(paths[::-1])] == ["1.jpg", "1.jpg", *names[::-1]]


def test_images_that_differ_in_their_endings_alone_stay_in_the_folder_of_the_pictures(tmp_path: Path) -> None:
    paths = [tmp_path / "0.jpg", tmp_path / "0.png", Path("/0.jpg")]
    names = _distinct_names(paths)
    assert [str(name) for name in names] == [f"{tmp_path.name}/0.jpg", f"{tmp_path.name}/0.png", "0.jpg"]
    written = _targets(names, paths, tmp_path / "out")
    assert written == [tmp_path / "out" / f"{name}.png" for name in (f"{tmp_path.name}-0", f"{tmp_path.name}-0-2", "0")]


def test_show_overwrites_no_image(photos: list[Path]) -> None:
    before = photos[0].read_bytes()
    (path,) = show(ColourEncoder(), photos[:1], photos[0].parent, ShowConfig(resolution=64))
    assert path == photos[0].with_name("astronaut-2.png")
    assert photos[0].read_bytes() == before


@pytest.mark.parametrize(
    ("window", "k", "border"), [(3, 4, "wrap"), (3, 8, "clip"), (5, 1, "clip"), ("all", 2, "wrap")]
)
def test_show_with_queries_anywhere(photos: list[Path], tmp_path: Path, window, k: int, border) -> None:
    queries = [(0.0, 0.0), (1.0, 1.0)]
    config = ShowConfig(resolution=64, k=k, window=window, border=border)
    (path,) = show(ColourEncoder(), photos[:1], tmp_path, config, queries=queries)
    with Image.open(path) as picture:
        assert picture.width == 2 * MARGIN + 3 * PANEL + 2 * GAP
        pixels = np.asarray(picture.convert("RGB"))
    # The disks stand on the first and the last patch of the marked image, 40 pixels wide, each in its colour.
    rows, columns = zip(
        *((pixels == ImageColor.getrgb(colour)).all(-1).nonzero() for colour in SERIES[:2]), strict=True
    )
    assert [columns[i][columns[i] < MARGIN + PANEL].mean() for i in range(2)] == pytest.approx([52, 332], abs=1)
    assert rows[0][columns[0] < MARGIN + PANEL].mean() + 120 == pytest.approx(
        rows[1][columns[1] < MARGIN + PANEL].mean(), abs=1
    )


@pytest.mark.parametrize(("size", "panel"), [((300, 1), (PANEL, PANEL // 4)), ((1, 300), (TALL_PANEL, 4 * TALL_PANEL))])
def test_a_strip_is_squeezed(tmp_path: Path, size: tuple[int, int], panel: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "strip.png")
    (path,) = show(ColourEncoder(), [tmp_path / "strip.png"], tmp_path / "out", ShowConfig(resolution=16), queries=[])
    with Image.open(path) as picture:
        assert picture.width == 2 * MARGIN + panel[0]
        assert 2 * panel[1] < picture.height < 2 * panel[1] + 250


def test_show_without_queries_shows_image_and_components(photos: list[Path], tmp_path: Path) -> None:
    (path,) = show(ColourEncoder(), photos[:1], tmp_path, ShowConfig(resolution=64), queries=[])
    with Image.open(path) as picture:
        assert picture.width == 2 * MARGIN + PANEL


@pytest.mark.slow
def test_show_on_real_images(data_dir: Path, tmp_path: Path) -> None:
    images = sorted((data_dir / "voc_real3").rglob("*.jpg"))[:2]
    assert images
    assert all(path.stat().st_size > 50_000 for path in show(ColourEncoder(), images, tmp_path))


def test_show_says_what_is_wrong(photos: list[Path], tmp_path: Path) -> None:
    encoder, broken = ColourEncoder(), tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        show(encoder, [broken], tmp_path)
    with pytest.raises(ValueError, match="resolution 8"):
        show(encoder, photos, tmp_path, ShowConfig(resolution=8))
    with pytest.raises(ValueError, match=r"\(1\.5, 0\).*between 0 and 1"):
        show(encoder, photos, tmp_path, ShowConfig(resolution=64), queries=[(1.5, 0)])
    with pytest.raises(ValueError, match="window is 4"):
        show(encoder, photos, tmp_path, ShowConfig(window=4))
    diverged = ConvolutionEncoder()
    nn.init.constant_(diverged.convolution.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        show(diverged, photos, tmp_path, ShowConfig(resolution=64))
