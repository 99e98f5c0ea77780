"""Conversion of points: the two directions are inverse, and right for boxes whose corners are known."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfpatch.data.augment.geometry import crop_to_image, image_to_crop
from selfpatch.data.augment.multicrop import ViewParameters
from selfpatch.data.augment.pillow import render

box = st.tuples(
    st.integers(0, 4000), st.integers(0, 4000), st.integers(1, 4000), st.integers(1, 4000), st.booleans()
).map(lambda row: torch.tensor(row, dtype=torch.float64))
points = st.lists(st.tuples(st.floats(-2, 3), st.floats(-2, 3)), min_size=1, max_size=5).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@given(points, box)
def test_inverse_of_each_other(points: torch.Tensor, box: torch.Tensor) -> None:
    torch.testing.assert_close(image_to_crop(crop_to_image(points, box), box), points, rtol=1e-9, atol=1e-9)
    pixels = points * 1000
    torch.testing.assert_close(crop_to_image(image_to_crop(pixels, box), box), pixels, rtol=1e-9, atol=1e-6)


@given(points, box)
def test_a_flip_mirrors_x_and_leaves_y(points: torch.Tensor, box: torch.Tensor) -> None:
    other = box.clone()
    other[4] = 1 - box[4]
    mirrored = points * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    torch.testing.assert_close(crop_to_image(points, other), crop_to_image(mirrored, box))


@given(box)
def test_corners_of_the_crop_are_corners_of_the_box(box: torch.Tensor) -> None:
    left, top, width, height, flipped = box.tolist()
    corners = crop_to_image(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64), box)
    xs = [left + width, left] if flipped else [left, left + width]
    assert corners.tolist() == [[xs[0], top], [xs[1], top + height]]


def test_leading_dimensions_broadcast() -> None:
    boxes = torch.tensor(
        [[[0, 0, 10, 20, 0], [5, 5, 10, 20, 1]], [[1, 2, 3, 4, 1], [0, 0, 1, 1, 0]]]
    ).float()  # [V, B, 5]
    grid = torch.rand(7, 2)
    mapped = crop_to_image(grid, boxes)
    assert mapped.shape == (2, 2, 7, 2)
    torch.testing.assert_close(mapped[0, 1], crop_to_image(grid, boxes[0, 1]))
    torch.testing.assert_close(image_to_crop(mapped, boxes), grid.expand(2, 2, 7, 2))


def test_the_geometry_agrees_with_the_renderer() -> None:
    """A bright pixel of the image is found in the crop where the geometry says."""
    for flip in (False, True):
        pixels = np.zeros((50, 60, 3), np.uint8)
        pixels[20, 33] = 255
        view = render(Image.fromarray(pixels), 16, ViewParameters(28, 10, 16, 16, flip, None, False, 0.0, False))
        y, x = divmod(int(view[0].argmax()), 16)
        centre = torch.tensor([[(x + 0.5) / 16, (y + 0.5) / 16]])
        box = torch.tensor([28, 10, 16, 16, flip]).float()
        assert crop_to_image(centre, box).tolist() == [[33.5, 20.5]]
