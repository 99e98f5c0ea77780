"""What the pictures are drawn with: colours, maps, the sheet of panels, and the view around a query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.visualization.canvas import (
    CAPTION_SIZE,
    GAP,
    MARGIN,
    SUBTITLE_HEIGHT,
    Panel,
    Row,
    draw_marker,
    fitted,
    font,
    lay_out,
    save_png,
    wrapped,
)
from selfpatch.visualization.colour import viridis
from selfpatch.visualization.maps import heat_over, heat_range, patch_map, to_image, torus_crop
from selfpatch.visualization.zoom import Match, View, draw_match, view_around

RED, BLUE = (200, 30, 30), (20, 40, 220)


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours [..., 3]."""
    c = colours / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_viridis_gets_lighter_evenly() -> None:
    steps = np.diff(lightness(viridis(np.linspace(0, 1, 33)).astype(float)))
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.mean()


def test_viridis_at_its_ends_and_beyond() -> None:
    assert viridis([0, 1]).tolist() == [[68, 1, 84], [253, 231, 37]]
    assert viridis([-3, 7]).tolist() == viridis([0, 1]).tolist()
    assert viridis(np.zeros((2, 5))).shape == (2, 5, 3)


def test_patch_map_keeps_edges_sharp() -> None:
    colours = torch.tensor([[[255, 0, 0], [0, 255, 0]]], dtype=torch.uint8)
    image = np.asarray(patch_map(colours, (20, 10)))
    assert (image[:, :10] == [255, 0, 0]).all()
    assert (image[:, 10:] == [0, 255, 0]).all()


def test_to_image_puts_channels_last() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4)
    assert np.array_equal(np.asarray(to_image(pixels)), pixels.permute(1, 2, 0).numpy())


def test_heat_is_brightest_where_it_is_highest() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1
    drawn = np.asarray(heat_over(Image.new("RGB", (40, 40), (128, 128, 128)), heat, heat_range(heat)).convert("L"), int)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[0] // 10 == 1
    assert np.unravel_index(drawn.argmax(), drawn.shape)[1] // 10 == 2


def test_constant_heat_can_be_drawn() -> None:
    heat = torch.full((3, 3), 0.4)
    assert heat_range(heat) == pytest.approx((0.4, 0.4))
    drawn = heat_over(Image.new("RGB", (9, 9)), heat, heat_range(heat))
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) == 1


def test_torus_crop_goes_on_at_the_other_side() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    crop = np.asarray(torus_crop(Image.fromarray(pixels), (-2, 3, 1, 6)))
    assert np.array_equal(crop, pixels[np.ix_([3, 0, 1], [4, 5, 0])])


def test_sheet_has_its_panels_where_the_layout_says() -> None:
    panels = [Panel(Image.new("RGB", (60, 40), RED)), Panel(Image.new("RGB", (80, 40), BLUE))]
    sheet = lay_out([Row(panels)], title="two panels")
    assert sheet.width == 2 * MARGIN + 60 + GAP + 80
    pixels = np.asarray(sheet)
    bottom = sheet.height - MARGIN
    assert (pixels[bottom - 40 : bottom, MARGIN : MARGIN + 60] == RED).all()
    assert (pixels[bottom - 40 : bottom, MARGIN + 60 + GAP : -MARGIN] == BLUE).all()
    assert (pixels[bottom:] == 255).all()
    assert (pixels[: MARGIN + 40].min()) < 60  # the title's ink


def test_rows_may_differ_in_length_and_carry_lines() -> None:
    tile = Image.new("RGB", (200, 50), RED)
    plain = lay_out([Row([Panel(tile), Panel(tile)]), Row([Panel(tile)])], title="t")
    lined = lay_out(
        [Row([Panel(tile, "caption", 1, BLUE, (-0.5, 1.0)), Panel(tile)], "heading"), Row([Panel(tile)])], title="t"
    )
    assert lined.width == plain.width
    assert lined.height > plain.height


def test_no_panel_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        lay_out([Row([])], title="nothing")


def test_long_texts_are_cut_to_their_room() -> None:
    assert fitted("short", CAPTION_SIZE, 500) == "short"
    cut = fitted("a very long file name indeed.jpeg", CAPTION_SIZE, 120)
    assert cut.endswith("...")
    assert font(CAPTION_SIZE).getlength(cut) <= 120


@pytest.mark.parametrize("width", [30, 120, 400, 5000])
def test_wrapped_lines_fit_and_hold_every_word(width: int) -> None:
    text = "A patch's colour: the first three principal components of its features, over all these images."
    lines = wrapped(text, CAPTION_SIZE, width)
    assert all(font(CAPTION_SIZE).getlength(line) <= width for line in lines)
    assert width < 120 or " ".join(lines) == text
    assert (len(lines) == 1) == (width == 5000)
    assert wrapped("", CAPTION_SIZE, width) == []


def test_a_subtitle_takes_the_lines_that_it_needs() -> None:
    rows = [Row([Panel(Image.new("RGB", (200, 50), RED))])]
    one, three = (lay_out(rows, title="t", subtitle=" ".join(["some words"] * n)) for n in (1, 4))
    lines = len(wrapped(" ".join(["some words"] * 4), CAPTION_SIZE, 200))
    assert lines > 1
    assert three.height - one.height == (lines - 1) * SUBTITLE_HEIGHT
    pixels = np.asarray(three)
    assert (pixels[three.height - MARGIN - 50 : three.height - MARGIN, MARGIN:-MARGIN] == RED).all()


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


@pytest.mark.parametrize("centre", [(50, 30), (0, 0), (100, 60), (3, 58)])
def test_a_marker_is_whole_wherever_it_is(centre: tuple[int, int]) -> None:
    image = Image.new("RGB", (100, 60), (0, 0, 0))
    draw_marker(image, centre, RED, 1)
    middle = Image.new("RGB", (100, 60), (0, 0, 0))
    draw_marker(middle, (50, 30), RED, 1)
    assert (np.asarray(image) == RED).all(-1).sum() == (np.asarray(middle) == RED).all(-1).sum() > 200


def test_save_png_makes_the_folder(tmp_path: Path) -> None:
    path = save_png(Image.new("RGB", (3, 2), RED), tmp_path / "a" / "b" / "red.png")
    with Image.open(path) as image:
        assert (image.size, image.getpixel((0, 0))) == ((3, 2), RED)


def test_view_stays_inside_without_wrapping_and_centres_with_it() -> None:
    grid, size = (10, 20), (320, 160)
    inside = view_around(0, grid, size, 5, wrap=False)
    assert (inside.top, inside.left, inside.rows, inside.columns) == (0, 0, 5, 10)
    around = view_around(0, grid, size, 5, wrap=True)
    assert (around.top, around.left) == (-2, -5)
    assert around.place(0, grid) == around.box(0, 0) == (160, 64, 192, 96)
    assert around.place(199, grid) == around.box(-1, -1)  # the last patch lies up and left of the first


def test_view_is_never_larger_than_the_grid() -> None:
    view = view_around(4, (3, 3), (300, 300), 9, wrap=True)
    assert (view.rows, view.columns) == (3, 3)


@pytest.mark.parametrize("wrap", [True, False])
def test_match_outlines_what_was_picked_and_dims_the_rest(wrap: bool) -> None:
    grid, view = (5, 5), View(0, 0, 5, 5, (200, 200))
    assert view_around(12, grid, (200, 200), 7, wrap=wrap) == view
    image = Image.new("RGB", (80, 80), (200, 200, 200))
    drawn = np.asarray(draw_match(image, Match(12, [6, 7, 11], [7]), grid, view, BLUE))

    def patch(index: int) -> np.ndarray:
        left, top, right, bottom = view.place(index, grid)
        return drawn[top:bottom, left:right]

    assert (patch(7)[0] == BLUE).all()
    assert (patch(7)[20, 20] == 200).all()
    assert (patch(12)[:, 0] == 255).all()
    assert (patch(6) == 80).all()
    assert (patch(11) == 80).all()
    assert (patch(24) == 200).all()
