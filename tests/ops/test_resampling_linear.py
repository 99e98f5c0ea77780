"""Linear resize of uint8 images: OpenCV's levels, and its plain definition."""

from __future__ import annotations

import pytest
import torch

from selfpatch.ops.resampling import resize_linear

SIZES = [(48, 83), (24, 41), (72, 128), (96, 30), (30, 100), (24, 32), (1, 1), (48, 64)]


def random_image(height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.randint(256, (3, height, width), generator=torch.manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_level_is_that_of_opencv(height: int, width: int) -> None:
    cv2 = pytest.importorskip("cv2")
    image = random_image()
    expected = torch.from_numpy(cv2.resize(image.movedim(0, -1).numpy(), (width, height))).movedim(-1, 0)
    assert torch.equal(resize_linear(image, height, width), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_levels_are_less_than_one_off_exact_interpolation(height: int, width: int) -> None:
    image = random_image()
    exact = torch.nn.functional.interpolate(image[None].double(), (height, width), mode="bilinear")[0]
    assert (resize_linear(image, height, width) - exact).abs().max() < 1


def test_leading_dimensions_are_kept_and_a_constant_image_stays_constant() -> None:
    image = random_image()
    batch = torch.stack([image, image.flip(-1)])
    assert torch.equal(resize_linear(batch, 20, 30)[1], resize_linear(image.flip(-1), 20, 30))
    assert (resize_linear(torch.full((1, 7, 5), 201, dtype=torch.uint8), 13, 11) == 201).all()
