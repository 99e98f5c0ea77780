"""The sheet of panels: where images, captions, disks and colour bars are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.visualization.layout import (
    CAPTION_HEIGHT,
    CAPTION_SIZE,
    GAP,
    MARGIN,
    SUBTITLE_HEIGHT,
    Marker,
    Panel,
    Row,
    fitted,
    lay_out,
    printable,
    save_png,
    text_width_of,
    to_image,
)  # fmt: skip

RED, BLUE = (200, 30, 30), (20, 40, 220)


def test_to_image_puts_channels_last() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4)
    assert np.array_equal(np.asarray(to_image(pixels)), pixels.permute(1, 2, 0).numpy())


def test_sheet_has_its_panels_where_the_layout_says() -> None:
    panels = [Panel(Image.new("RGB", (80, 40), RED)), Panel(Image.new("RGB", (80, 40), BLUE))]
    sheet = lay_out([Row(panels)], title="two panels")
    assert sheet.width == 2 * MARGIN + 80 + GAP + 80
    pixels = np.asarray(sheet)
    bottom = sheet.height - MARGIN
    assert (pixels[bottom - 40 : bottom, MARGIN : MARGIN + 80] == RED).all()
    assert (pixels[bottom - 40 : bottom, MARGIN + 80 + GAP : -MARGIN] == BLUE).all()
    assert (pixels[bottom:] == 255).all()
    assert (pixels[: MARGIN + 40].min()) < 60  # the title's ink


def test_rows_may_differ_in_length_and_carry_lines() -> None:
    tile = Image.new("RGB", (200, 50), RED)
    plain = lay_out([Row([Panel(tile), Panel(tile)]), Row([Panel(tile)])], title="t")
    lined = lay_out(
        [Row([Panel(tile, "caption", Marker(1, "#1428dc"), (-0.5, 1.0)), Panel(tile)], "heading"), Row([Panel(tile)])],
        title="t",
    )
    assert lined.width == plain.width
    assert lined.height > plain.height


def test_no_panel_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        lay_out([Row([])], title="nothing")


def test_long_texts_are_cut_to_their_room() -> None:
    assert fitted("short", CAPTION_SIZE, 500) == "short"
    cut = fitted("a very long file name indeed.jpeg", CAPTION_SIZE, 120)
    assert cut.endswith("…")
    assert text_width_of(cut, CAPTION_SIZE) <= 120


@pytest.mark.parametrize("width", [120, 400, 1200])
def test_a_subtitle_takes_the_lines_that_it_needs(width: int) -> None:
    subtitle = "Colour of a patch: the first three principal components of its features, over all images of the row."
    rows = [Row([Panel(Image.new("RGB", (width, 50), RED))])]
    without, with_one = (np.asarray(lay_out(rows, title="t", subtitle=text)) for text in ("", subtitle))
    lines = (len(with_one) - len(without)) // SUBTITLE_HEIGHT
    assert len(with_one) == len(without) + lines * SUBTITLE_HEIGHT
    least = text_width_of(subtitle, CAPTION_SIZE) / width
    assert least <= lines < 1.8 * least + 1
    assert (with_one[-MARGIN - 50 : -MARGIN, MARGIN:-MARGIN] == RED).all()
    assert (with_one[:, -MARGIN + 1 :] == 255).all()  # no line runs into the margin


def test_a_png_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(Image.new("RGB", (3, 2), RED), tmp_path / "red.png")
    before = path.read_bytes()

    def fails(self: Image.Image, file, **options) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        save_png(Image.new("RGB", (3, 2), BLUE), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("point", [(50, 30), (0, 0), (100, 60), (3, 58)])
def test_a_marker_is_whole_wherever_it_is(point: tuple[int, int]) -> None:
    def disk(point: tuple[int, int]) -> np.ndarray:
        panel = Panel(Image.new("RGB", (100, 60)), markers=[Marker(1, "#c81e1e", point)])
        return (np.asarray(lay_out([Row([panel])], title=""))[-MARGIN - 60 : -MARGIN, MARGIN:-MARGIN] == RED).all(-1)

    assert disk(point).sum() == pytest.approx(disk((50, 30)).sum(), abs=4)
    assert disk(point).sum() > 200
    if point == (50, 30):
        rows, columns = disk(point).nonzero()
        assert (rows.mean(), columns.mean()) == pytest.approx((29.5, 49.5), abs=1)


def test_panels_are_copied_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    sheet = np.asarray(lay_out([Row([Panel(Image.fromarray(pixels))] * 3)], title="t"))
    for column in range(3):
        left = MARGIN + column * (53 + GAP)
        np.testing.assert_array_equal(sheet[-MARGIN - 37 : -MARGIN, left : left + 53], pixels)


def test_a_line_has_its_disk_its_words_and_its_colour_bar() -> None:
    panel = Panel(Image.new("RGB", (320, 50), RED), "cosine", Marker(7, "#1428dc"), (-0.25, 1.0))
    sheet = np.asarray(lay_out([Row([panel])], title=""))
    line = sheet[-MARGIN - CAPTION_HEIGHT : -MARGIN, MARGIN:-MARGIN]
    assert (line[:, :24] == BLUE).all(-1).sum() > 200
    ink = (line < 140).all(-1).any(0)
    assert ink[30:85].any()  # the caption
    assert not ink[90:170].any()  # then the lowest value
    violet, yellow = ((line == colour).all(-1).any(0).nonzero()[0] for colour in [(68, 1, 84), (253, 231, 36)])
    assert len(violet) >= 1
    assert 200 < violet[0] < yellow[-1] == violet[0] + 55 < 320
    assert ink[yellow[-1] + 4 :].any()  # the highest value


@pytest.mark.parametrize("text", ["$x_1$ 50 %", "\N{CJK UNIFIED IDEOGRAPH-732B}.png", "bad\udce9 name\x07\n.png"])
def test_any_text_can_be_drawn_without_a_warning(text: str, recwarn: pytest.WarningsRecorder) -> None:
    sheet = lay_out([Row([Panel(Image.new("RGB", (200, 50), RED), text)], text)], title=text, subtitle=text)
    assert (np.asarray(sheet)[: MARGIN + 40].min()) < 60
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_dollars_are_drawn_as_they_stand() -> None:
    assert text_width_of("$x$", 20) > text_width_of("x", 20) + 10
    assert printable("a\x00b\n c\udce9\u202e") == "a\\x00b c\\xe9\\u202e"


def test_save_png_makes_the_folder(tmp_path: Path) -> None:
    path = save_png(Image.new("RGB", (3, 2), RED), tmp_path / "a" / "b" / "red.png")
    with Image.open(path) as image:
        assert (image.size, image.getpixel((0, 0))) == ((3, 2), RED)
