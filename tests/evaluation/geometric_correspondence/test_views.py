"""Points of a surface and their pixels agree with the sphere that was drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig
from selfpatch.evaluation.geometric_correspondence.dataset import View, open_pairs
from selfpatch.evaluation.geometric_correspondence.views import Surface, _square_around, load_surface
from tests.evaluation.geometric_correspondence.conftest import ANGLES, RADIUS, colour_of, object_points

RESOLUTION = 256


def view_of(navi: Path, number: int) -> View:
    pairs = open_pairs(navi, NAVIConfig(every=1, max_angle=180))
    return next(first for first, _ in pairs if first.name == f"{number:03d}")


def surface_of(view: View) -> Surface:
    surface = load_surface(view, RESOLUTION, 4)
    assert surface is not None
    return surface


def distance_from_the_sphere(surface: Surface, angle: float) -> float:
    points = object_points(surface.points[surface.mask], angle)
    return float(np.abs(np.linalg.norm(points, axis=1) - RADIUS).mean())


@pytest.mark.parametrize("number", range(len(ANGLES)))
def test_points_lie_on_the_sphere_and_have_its_colour(navi: Path, number: int) -> None:
    surface, angle = surface_of(view_of(navi, number)), ANGLES[number]
    assert distance_from_the_sphere(surface, angle) < 1.5, "millimetres; a pixel is 2 mm wide"
    shown = surface.mask
    assert shown.float().mean() > 0.7, "the square is as large as the sphere"
    points = object_points(surface.points[shown], angle)
    pixels = surface.pixels[:, ::4, ::4].movedim(0, -1)[shown].double().numpy()
    inner = np.abs(pixels - colour_of(points)).max(1)
    assert np.quantile(inner, 0.9) < 6, "of 255; the image is enlarged smoothly, depths are not"


def test_projected_points_are_at_their_pixels(navi: Path) -> None:
    surface = surface_of(view_of(navi, 1))
    shown = surface.mask
    rows_and_columns = shown.nonzero().flip(1).double() * 4
    error = surface.project(surface.points[shown].double()) - rows_and_columns
    assert error.abs().max() < 5, "pixels of 256; the image has 96"


@pytest.mark.parametrize("mistake", ["focal", "mirrored"])
def test_a_wrong_camera_is_noticed(navi: Path, mistake: str) -> None:
    view = view_of(navi, 1)
    if mistake == "focal":
        assert distance_from_the_sphere(surface_of(replace(view, focal=1.5 * view.focal)), ANGLES[1]) > 5
    else:
        surface = surface_of(view)
        points = object_points(surface.points[surface.mask], -ANGLES[1])
        pixels = surface.pixels[:, ::4, ::4].movedim(0, -1)[surface.mask].double().numpy()
        assert np.median(np.abs(pixels - colour_of(points)).max(1)) > 20


def test_the_square_is_centred_or_moved() -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:9, 2:17] = True  # 5 x 15 pixels, of which the last row and column are left out
    assert _square_around(mask) == (0, 2, 14), "it would begin above the image"
    mask[:] = False
    mask[9:14, 2:17] = True
    assert _square_around(mask) == (4, 2, 14)
    mask[:] = False
    assert _square_around(mask) is None
    mask[3, 3] = True
    assert _square_around(mask) is None


def test_a_view_without_depth_and_one_of_another_shape(navi: Path, tmp_path: Path) -> None:
    view = view_of(navi, 0)
    Image.new("I;16", (128, 96)).save(tmp_path / "empty.png")
    assert load_surface(replace(view, depth=tmp_path / "empty.png"), 64, 8) is None
    Image.new("I;16", (96, 128)).save(tmp_path / "turned.png")
    with pytest.raises(ValueError, match=r"has 128 x 96 pixels and .*turned\.png 96 x 128; use images and depths of"):
        load_surface(replace(view, depth=tmp_path / "turned.png"), 64, 8)


@pytest.mark.parametrize(("thickness", "is_shown"), [(1, False), (4, True)])
def test_a_thin_object_may_lie_between_the_kept_points(
    navi: Path, tmp_path: Path, thickness: int, is_shown: bool
) -> None:
    """Of 87 rows, 39 and 43 are kept, but not 41, in which a thin object lies."""
    depth = np.zeros((96, 128), np.uint16)
    depth[41 : 41 + thickness, 20:108] = 1638
    Image.fromarray(depth).save(tmp_path / "line.png")
    surface = load_surface(replace(view_of(navi, 0), depth=tmp_path / "line.png"), 96, 8)
    assert (surface is not None) == is_shown


def test_a_strip_that_would_become_huge_is_refused_by_name(navi: Path, tmp_path: Path) -> None:
    image, depth = tmp_path / "strip.png", tmp_path / "depth.png"
    Image.new("RGB", (2, 3000)).save(image)
    Image.fromarray(np.ones((3000, 2), np.uint16)).save(depth)
    with pytest.raises(ValueError, match=r"strip\.png.*2 x 3000 pixels, resized to 1024 x 1536000"):
        load_surface(replace(view_of(navi, 1), image=image, depth=depth), RESOLUTION, 4)
