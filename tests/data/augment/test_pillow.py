"""Plain renderer: equal to torchvision's transforms, and right on pictures whose result is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multicrop import ADJUSTMENTS, ColourJitter, ViewParameters, ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sample_images import HELD_OUT, source_folder

NOTHING = {"flip": False, "jitter": None, "grey": False, "blur_radius": 0.0, "solarize": False}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return read_image(source_folder() / HELD_OUT[0])


def force(name: str, factor: float) -> transforms.ColorJitter:
    """Return a torchvision jitter that can draw only one factor."""
    return transforms.ColorJitter(**{name: (factor, factor)})


@pytest.mark.parametrize("sample", range(12))
def test_a_view_equals_a_composition_of_torchvision_transforms(photo: Image.Image, sample: int) -> None:
    resampling = ("bicubic", "bilinear")[sample % 2]
    recipe = ViewRecipe(64, (0.05, 1.0), flip=0.5, blur=0.5, solarize=0.5, resampling=resampling, colour=CropConfig())
    p = draw_view(recipe, photo.size, generator(0, 0, sample, 0))
    steps = [
        transforms.Lambda(lambda image: image.crop((p.left, p.top, p.left + p.width, p.top + p.height))),
        transforms.Resize((64, 64), transforms.InterpolationMode(resampling)),
        transforms.RandomHorizontalFlip(float(p.flip)),
        *([force(name, getattr(p.jitter, name)) for name in p.jitter.order] if p.jitter else []),
        transforms.RandomGrayscale(float(p.grey)),
        transforms.Lambda(
            lambda image: image.filter(ImageFilter.GaussianBlur(p.blur_radius)) if p.blur_radius else image
        ),
        transforms.RandomSolarize(128, float(p.solarize)),
        transforms.PILToTensor(),
    ]
    expected = transforms.Compose(steps)(photo)
    view = render(photo, 64, p)
    assert view.shape == (3, 64, 64)
    assert view.dtype == torch.uint8
    torch.testing.assert_close(view, expected, rtol=0, atol=0)


def test_a_box_is_cut_out_and_mirrored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cut = torch.from_numpy(pixels[5:21, 7:23].copy()).permute(2, 0, 1)
    torch.testing.assert_close(render(image, 16, ViewParameters(7, 5, 16, 16, **NOTHING)), cut)
    flipped = ViewParameters(7, 5, 16, 16, **(NOTHING | {"flip": True}))
    torch.testing.assert_close(render(image, 16, flipped), cut.flip(-1))


def test_solarize_inverts_from_128_on() -> None:
    image = Image.fromarray(np.array([[[127, 128, 255]]], np.uint8))
    view = render(image, 1, ViewParameters(0, 0, 1, 1, **(NOTHING | {"solarize": True})))
    assert view.flatten().tolist() == [127, 127, 0]


def test_the_drawn_order_of_the_adjustments_counts() -> None:
    image = Image.fromarray(np.array([[[200, 40, 90], [10, 60, 20]]] * 2, np.uint8))
    views = []
    for order in (ADJUSTMENTS, ADJUSTMENTS[::-1]):
        jitter = ColourJitter(1.4, 0.6, 1.2, 0.1, order)
        views.append(render(image, 2, ViewParameters(0, 0, 2, 2, **(NOTHING | {"jitter": jitter}))))
    assert not torch.equal(*views)


def test_one_pixel_becomes_a_view() -> None:
    image = Image.new("RGB", (1, 1), (9, 8, 7))
    view = render(image, 8, ViewParameters(0, 0, 1, 1, **(NOTHING | {"blur_radius": 2.0})))
    assert view.flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]
