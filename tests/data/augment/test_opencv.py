"""Fast renderer: close to the plain one in every operation, in whole pipelines, and on pictures of odd shapes."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment import opencv as fast_rendering
from selfpatch.data.augment.multichannel import render_raster
from selfpatch.data.augment.multicrop import (
    ADJUSTMENTS,
    ColourJitter,
    ViewParameters,
    ViewRecipe,
    dino_views,
    draw_view,
    generator,
)
from selfpatch.data.augment.opencv import fast_rendering_available, render_fast
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sample_images import source_folder

pytest.importorskip("cv2")

PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg")
RECIPES = dino_views(CropConfig())
NOTHING = ViewParameters(0, 0, 1, 1, flip=False, jitter=None, grey=False, blur_radius=0.0, solarize=False)
NEUTRAL = ColourJitter(1.0, 1.0, 1.0, 0.0, ())


@pytest.fixture(scope="module", params=PHOTOS)
def photo(request: pytest.FixtureRequest) -> Image.Image:
    return read_image(source_folder() / request.param)


def adjusted(**factors: float) -> ViewParameters:
    """Return parameters that adjust in the given order."""
    return dataclasses.replace(NOTHING, jitter=dataclasses.replace(NEUTRAL, **factors, order=tuple(factors)))


def at(parameters: ViewParameters, left: int, top: int, width: int, height: int) -> ViewParameters:
    return dataclasses.replace(parameters, left=left, top=top, width=width, height=height)


def as_raster(image: Image.Image) -> Raster:
    """Return a raster like that of the fast reader."""
    return Raster(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def distance(first: Tensor, second: Tensor) -> float:
    """Return the mean difference in levels."""
    assert first.shape == second.shape
    assert first.dtype == second.dtype == torch.uint8
    return (first.float() - second.float()).abs().mean().item()


ALONE = {
    "bilinear": dataclasses.replace(NOTHING, resampling="bilinear"),
    "flip": dataclasses.replace(NOTHING, flip=True),
    "grey": dataclasses.replace(NOTHING, grey=True),
    "solarize": dataclasses.replace(NOTHING, solarize=True),
    **{f"{name} {x}": adjusted(**{name: x}) for name in ADJUSTMENTS[:3] for x in (0.0, 0.6, 0.9, 1.2, 1.8)},
    **{f"hue {x}": adjusted(hue=x) for x in (-0.5, -0.1, -0.03, 0.05, 0.1, 0.3)},
    **{f"blur {x}": dataclasses.replace(NOTHING, blur_radius=x) for x in (0.1, 0.5, 1.0, 1.41, 1.42, 2.0, 5.0)},
}


@pytest.mark.parametrize("name", ALONE)
def test_each_operation_alone_is_close(photo: Image.Image, name: str) -> None:
    for size, box in ((96, (30, 40, 120, 100)), (224, (0, 0, *photo.size)), (75, (11, 7, 75, 75))):
        p = at(ALONE[name], *box)
        expected = render(photo, size, p)
        got = render_fast(as_raster(photo), size, p)
        assert distance(got, expected) <= 1.0
        untouched = render(photo, size, at(NOTHING, *box))
        if distance(untouched, expected) > 3:  # it does something here; the smallest blurs and shifts hardly do
            assert distance(got, untouched) > 2


BOXES = {
    "one pixel": (1, 1, (0, 0, 1, 1), 8),
    "into one pixel": (50, 40, (3, 4, 40, 30), 1),
    "a pixel of many": (50, 40, (49, 39, 1, 1), 5),
    "a column": (50, 40, (10, 0, 1, 40), 96),
    "a row": (50, 40, (0, 7, 50, 1), 96),
    "much wider than high": (3000, 40, (100, 0, 2800, 40), 224),
    "much higher than wide": (40, 3000, (0, 0, 40, 3000), 96),
    "far down": (1500, 1200, (7, 5, 1400, 1100), 32),
    "far up": (50, 40, (13, 11, 7, 5), 224),
    "as it is": (50, 40, (2, 3, 31, 31), 31),
    "one side as it is": (90, 120, (2, 3, 64, 101), 64),
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_any_box_of_any_picture_is_close(name: str, flip: bool) -> None:
    """Noise has all colours and edges. A single pixel has no mean: its hue in 8 bits is off by a few levels."""
    width, height, box, size = BOXES[name]
    image, one_pixel = noise(width, height), min(box[2:]) == max(box[2:]) == 1
    coloured = dataclasses.replace(adjusted(contrast=1.3, hue=0.1), blur_radius=1.7)
    for parameters, tolerance in ((NOTHING, 0.3), (coloured, 4.0 if one_pixel else 1.5)):
        p = dataclasses.replace(at(parameters, *box), flip=flip)
        assert distance(render_fast(as_raster(image), size, p), render(image, size, p)) <= tolerance


def test_a_box_is_cut_out_and_mirrored() -> None:
    raster = as_raster(noise(40, 30))
    cut = raster.pixels[:, 5:21, 7:23]
    plain = at(NOTHING, 7, 5, 16, 16)
    torch.testing.assert_close(render_fast(raster, 16, plain), cut.contiguous())
    torch.testing.assert_close(render_fast(raster, 16, dataclasses.replace(plain, flip=True)), cut.flip(-1))


@pytest.mark.parametrize("strength", [1, 2])
def test_adjustments_in_every_order_are_close(photo: Image.Image, strength: int) -> None:
    """Strong adjustments are cut off at black and white, and the next one starts from there."""
    factors = (
        {"brightness": 1.4, "contrast": 1.3, "saturation": 1.2},
        {"brightness": 0.7, "contrast": 0.8, "saturation": 0.6},
    )[strength % 2]
    for number, order in enumerate(itertools.permutations(ADJUSTMENTS)):
        drawn = {name: 1 + strength * (factor - 1) for name, factor in factors.items()}
        jitter = dataclasses.replace(NEUTRAL, **drawn, hue=0.08, order=order)
        p = dataclasses.replace(at(NOTHING, 20, 10, 200, 180), jitter=jitter, grey=number % 5 == 0)
        assert distance(render_fast(as_raster(photo), 64, p), render(photo, 64, p)) < 2.0, order


def check_views(image: Image.Image, sample: int, recipes: tuple[ViewRecipe, ...] = RECIPES) -> float:
    """Return the mean difference over the views of an image, and check that no view is far off."""
    distances = []
    for view, recipe in enumerate(recipes):
        p = draw_view(recipe, image.size, generator(0, 0, sample, view))
        distances.append(distance(render_fast(as_raster(image), recipe.size, p), render(image, recipe.size, p)))
    assert max(distances) < 4.0
    return float(np.mean(distances))


@pytest.mark.parametrize("sample", range(3))
def test_views_of_dino_are_close(photo: Image.Image, sample: int) -> None:
    assert check_views(photo, sample) < 1.0


def test_views_of_real_photographs_are_close(data_dir: Path) -> None:
    files = sorted((data_dir / "imagenet_sample_256").rglob("*.JPEG"))[::50]
    assert np.mean([check_views(read_image(file), sample) for sample, file in enumerate(files)]) < 0.7


def test_solarize_inverts_from_128_on() -> None:
    image = Image.fromarray(np.array([[[127, 128, 255]]], np.uint8))
    assert render_fast(image, 1, dataclasses.replace(NOTHING, solarize=True)).flatten().tolist() == [127, 127, 0]


@pytest.mark.parametrize("radius", [0.3, 1.0, 1.5, 2.0, 3.3])
def test_the_blur_is_pillows_three_boxes(radius: float) -> None:
    point = np.zeros((31, 31, 3), np.uint8)
    point[15, 15] = 255
    expected = np.asarray(Image.fromarray(point).filter(ImageFilter.GaussianBlur(radius)))[..., 0].astype(int)
    p = at(dataclasses.replace(NOTHING, blur_radius=radius), 0, 0, 31, 31)
    assert np.abs(render_fast(Image.fromarray(point), 31, p)[0].numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_even_pictures_stay_as_even_as_the_plain_renderer_leaves_them(level: int) -> None:
    image = Image.new("RGB", (20, 20), (level, level, level))
    for name, parameters in ALONE.items():
        p = at(parameters, 0, 0, 20, 20)
        expected = render(image, 12, p)
        assert (render_fast(image, 12, p).int() - expected.int()).abs().max() <= 1, name


def test_a_pillow_image_gives_what_its_raster_gives() -> None:
    image = noise(60, 50)
    p = draw_view(RECIPES[2], image.size, generator(0, 0, 0, 0))
    torch.testing.assert_close(render_fast(image, 96, p), render_fast(as_raster(image), 96, p), rtol=0, atol=0)
    planar = Raster(as_raster(image).pixels.contiguous())
    torch.testing.assert_close(render_fast(planar, 96, p), render_fast(as_raster(image), 96, p), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_other_rasters_are_rendered_as_rasters(channels: int, dtype: torch.dtype) -> None:
    raster = Raster((torch.rand(channels, 40, 50, generator=torch.manual_seed(0)) * 255).to(dtype))
    p = at(dataclasses.replace(adjusted(contrast=1.2), blur_radius=1.0), 3, 4, 30, 20)
    got = render_fast(raster, 16, p)
    if channels == 3 and dtype == torch.uint8:
        assert not torch.equal(got, render_raster(raster, 16, p))
    else:
        torch.testing.assert_close(got, render_raster(raster, 16, p), rtol=0, atol=0)


def test_views_are_memory_of_their_own() -> None:
    raster = as_raster(noise(300, 200))
    before = raster.pixels.clone()
    parameters = [draw_view(RECIPES[0], raster.size, generator(0, 0, sample, 0)) for sample in range(4)]
    views = [render_fast(raster, 32, p) for p in parameters]
    kept = [view.clone() for view in views]
    for size in (31, 224):
        render_fast(as_raster(noise(300, 200, seed=1)), size, parameters[0])
    for view, copy in zip(views, kept, strict=True):
        assert view.is_contiguous()
        torch.testing.assert_close(view, copy, rtol=0, atol=0)
    torch.testing.assert_close(raster.pixels, before, rtol=0, atol=0)


def test_threads_do_not_disturb_each_other() -> None:
    raster = as_raster(noise(300, 200))
    parameters = [draw_view(RECIPES[2], raster.size, generator(0, 0, sample, 0)) for sample in range(60)]
    alone = [render_fast(raster, 96, p) for p in parameters]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: render_fast(raster, 96, p), parameters))
    for first, second in zip(alone, together, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_huge_buffers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(120, 100)
    p = at(NOTHING, 0, 0, 120, 100)
    expected = render_fast(image, 32, p)
    monkeypatch.setattr(fast_rendering, "LARGEST_KEPT", 100)
    monkeypatch.setattr(fast_rendering, "_scratch", fast_rendering._Scratch())
    torch.testing.assert_close(render_fast(image, 32, p), expected, rtol=0, atol=0)
    assert fast_rendering._scratch._cut.size == 0
    assert not fast_rendering._scratch._pairs


def test_buffers_of_a_few_sizes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    raster = as_raster(noise(60, 50))
    p = draw_view(RECIPES[2], raster.size, generator(0, 0, 0, 0))
    expected = {side: render_fast(raster, side, p) for side in range(20, 31)}
    monkeypatch.setattr(fast_rendering, "_scratch", fast_rendering._Scratch())
    for side, view in expected.items():
        torch.testing.assert_close(render_fast(raster, side, p), view, rtol=0, atol=0)
        assert len(fast_rendering._scratch._pairs) <= fast_rendering.MOST_KEPT


def test_opencv_runs_in_one_thread() -> None:
    import cv2

    assert fast_rendering_available()
    assert cv2.getNumThreads() == 1


def test_a_missing_opencv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    fast_rendering.opencv.cache_clear()
    try:
        assert not fast_rendering_available()
        with pytest.raises(ValueError, match=r"needs OpenCV.*pip install 'selfpatch\[fast\]'"):
            render_fast(noise(8, 8), 8, at(NOTHING, 0, 0, 8, 8))
    finally:
        fast_rendering.opencv.cache_clear()


def test_a_file_is_read_and_rendered_fast(tmp_path: Path) -> None:
    read_image(source_folder() / PHOTOS[0]).save(tmp_path / "photo.jpg", quality=90)
    image = read_image(tmp_path / "photo.jpg")
    p = draw_view(RECIPES[0], image.size, generator(0, 0, 0, 0))
    assert distance(render_fast(read_fast(tmp_path / "photo.jpg"), 224, p), render(image, 224, p)) < 1.0
