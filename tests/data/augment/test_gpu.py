"""Batched renderer of the device: equal to the plain one, operation by operation and in whole pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from skimage import data
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.gpu import DecodedBatch, DecodingCollator, shrink
from selfpatch.data.augment.multicrop import ColourJitter, ViewParameters, ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render
from selfpatch.data.collate import stack_boxes
from selfpatch.data.decode.multichannel import Raster
from selfpatch.ops import blur, colour, views
from selfpatch.ops.resampling import crop_resize, num_taps, resize_weights
from tests.helpers.devices import DEVICES

every_device = pytest.mark.parametrize("device", [*DEVICES, *["mps"] * torch.backends.mps.is_available()])

FULL: dict[str, Any] = {"flip": 0.5, "blur": 0.5, "solarize": 0.2, "colour": CropConfig()}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Photographs of several shapes and sizes."""
    boxes = [(0, 0, 320, 256), (100, 40, 300, 300), (0, 0, 190, 230), (20, 10, 160, 90)]
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    return [Image.fromarray(source).crop(box) for source, box in zip(sources, boxes, strict=True)]


def levels_of(images: list[Image.Image], size: int, device: str) -> Tensor:
    return torch.stack([tvf.pil_to_tensor(image.resize((size, size))) for image in images]).float().to(device)


def batch_of(
    images: list[Image.Image], recipes: list[ViewRecipe], *, num_global: int = 2, max_pixels: int = 0, seed: int = 0
) -> tuple[DecodedBatch, list[list[ViewParameters]]]:
    """Return a batch as the loader makes it, and the drawn parameters [B][V]."""
    drawn = [
        [draw_view(recipe, image.size, generator(seed, 0, b, v)) for v, recipe in enumerate(recipes)]
        for b, image in enumerate(images)
    ]
    return collated(DecodingCollator(recipes, num_global, max_pixels), images, drawn, range(len(images))), drawn


def collated(
    collator: DecodingCollator,
    images: Iterable[Image.Image],
    drawn: Sequence[list[ViewParameters]],
    samples: Sequence[int],
) -> DecodedBatch:
    prepared = [collator.prepare(image, parameters) for image, parameters in zip(images, drawn, strict=True)]
    return collator.collate(prepared, {"boxes": stack_boxes(drawn), "samples": torch.tensor(samples)})


def plain(images: list[Image.Image], size: int, drawn: list[list[ViewParameters]], views: slice) -> Tensor:
    """Return views [V, B, 3, S, S] of the plain renderer."""
    rendered = [[render(image, size, p) for p in row[views]] for image, row in zip(images, drawn, strict=True)]
    return torch.stack([torch.stack(row) for row in rendered]).transpose(0, 1)


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.cpu().float() - theirs.float()).abs()


@every_device
@pytest.mark.parametrize("size", [7, 64, 224])
@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.001, 0.01)], ids=["shrunk", "enlarged"])
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_crops_are_pillows_but_for_rounding(
    photographs: list[Image.Image],
    size: int,
    scale: tuple[float, float],
    resampling: Literal["bicubic", "bilinear"],
    device: str,
) -> None:
    recipes = [ViewRecipe(size, scale, flip=0.5, resampling=resampling)] * 3
    batch, drawn = batch_of(photographs, recipes)
    off = difference(batch.to(device).global_crops, plain(photographs, size, drawn, slice(2)))
    # Pillow rounds between the directions too, and takes first the one that is cheaper; here it is always the width.
    assert off.mean((2, 3, 4)).max() < 0.5
    assert off.max() <= 6


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_weights_are_pillows(resampling: Literal["bicubic", "bilinear"]) -> None:
    line = torch.from_numpy(np.random.default_rng(0).random((1, 50), np.float32))
    for left, width, size in [(0, 50, 20), (10, 33, 7), (49, 1, 4), (3, 20, 31), (5, 16, 16)]:
        start, length, taps = torch.tensor(float(left)), torch.tensor(float(width)), num_taps(width / size, resampling)
        weights = resize_weights(start, length, size, taps, 50, resampling=resampling)
        box = Image.fromarray(line.numpy()).crop((left, 0, left + width, 1))
        resized = box.resize((size, 1), Image.Resampling[resampling.upper()])
        torch.testing.assert_close(line @ weights.T, torch.from_numpy(np.array(resized)), rtol=0, atol=2e-6)


def test_no_pixel_from_outside_the_box_enters() -> None:
    images = torch.full((1, 3, 20, 30), 255.0)
    images[:, :, 4:14, 6:21] = 100.0
    boxes = torch.tensor([[[6.0, 4.0, 15.0, 10.0, 0.0]], [[6.5, 4.25, 14.0, 9.5, 1.0]]])
    assert (crop_resize(images, boxes, (8, 8)) == 100).all()


@every_device
def test_a_box_may_lie_between_pixels(device: str) -> None:
    """Pillow's resize takes such boxes too, but looks beyond them: in the interior both are the same."""
    image = Image.fromarray(data.astronaut()).crop((0, 0, 128, 128))
    pixels = tvf.pil_to_tensor(image).float()[None].to(device)
    theirs = image.resize((32, 32), Image.Resampling.BICUBIC, box=(10.25, 20.5, 90.75, 110.125))
    ours = crop_resize(pixels, torch.tensor([[[10.25, 20.5, 80.5, 89.625, 0.0]]]), (32, 32))[0, 0]
    assert difference(ours, tvf.pil_to_tensor(theirs))[:, 1:-1, 1:-1].max() <= 1


def test_half_precision_is_precise_enough(photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA devices compute in half precision; here a CPU does."""
    recipes = [ViewRecipe(64, (0.05, 1.0), **FULL)] * 8
    batch, drawn = batch_of(photographs, recipes, num_global=8)
    exact = batch.to("cpu").global_crops
    monkeypatch.setattr(views, "product_dtype", lambda device: torch.float16)
    half = batch.to("cpu").global_crops
    assert not torch.equal(half, exact), "it was not in half precision"
    assert difference(half, exact).mean((2, 3, 4)).max() < 0.5
    assert difference(half, plain(photographs, 64, drawn, slice(8))).mean((2, 3, 4)).max() < 1


@every_device
@pytest.mark.parametrize(
    ("number", "strengths", "adjust"),
    [
        (colour.BRIGHTNESS, (0.6, 1.0, 1.4, 0.0), tvf.adjust_brightness),
        (colour.CONTRAST, (0.6, 1.0, 1.4, 0.0), tvf.adjust_contrast),
        (colour.SATURATION, (0.8, 1.0, 1.9, 0.0), tvf.adjust_saturation),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_blends_are_pillows(
    photographs: list[Image.Image], number: int, strengths: tuple[float, ...], adjust: Any, device: str
) -> None:
    levels = levels_of(photographs, 48, device)
    order = torch.full((4, 4), colour.NOTHING)
    order[:, 2] = number
    ours = colour.jitter(levels, order, torch.tensor(strengths)[:, None].expand(4, 4))
    theirs = [adjust(image.resize((48, 48)), s) for image, s in zip(photographs, strengths, strict=True)]
    off = difference(ours, torch.stack([tvf.pil_to_tensor(image) for image in theirs]))
    assert off.max() <= 1  # where a factor in float32 leads to a whole number
    assert off.mean() < 0.01


@every_device
@pytest.mark.parametrize("turns", [0.0, 0.1, -0.1, 0.5, -0.5, 0.33])
def test_hue_is_torchvisions(photographs: list[Image.Image], turns: float, device: str) -> None:
    levels = levels_of(photographs, 48, device)
    shift = torch.full((4,), float(int(turns * 255) % 256), device=device)
    theirs = [tvf.adjust_hue(image.resize((48, 48)), turns) for image in photographs]
    off = difference(colour.shift_hue(levels, shift), torch.stack([tvf.pil_to_tensor(image) for image in theirs]))
    assert off.mean() < 0.05  # where hue falls between two of 255 shades in one precision and not in the other
    assert off.max() <= 6


@every_device
def test_hue_of_every_colour_is_torchvisions(device: str) -> None:
    steps = torch.arange(0, 256, 15, dtype=torch.uint8)
    colours = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).flatten(2)  # [3, 18, 324]
    image = tvf.to_pil_image(colours)
    ours = colour.shift_hue(colours[None].float().to(device), torch.tensor([25.0], device=device))
    off = difference(ours, tvf.pil_to_tensor(tvf.adjust_hue(image, 0.1))[None])
    assert off.mean() < 0.02
    assert off.max() <= 6


@every_device
def test_grey_and_solarize_are_pillows_to_the_bit(photographs: list[Image.Image], device: str) -> None:
    levels = levels_of(photographs, 48, device)
    small = [image.resize((48, 48)) for image in photographs]
    greys = torch.stack([tvf.pil_to_tensor(image.convert("L")) for image in small])
    assert difference(colour.grey(levels), greys).max() == 0
    inverted = torch.stack([tvf.pil_to_tensor(ImageOps.solarize(image, 128)) for image in small])
    assert difference(colour.solarize(levels), inverted).max() == 0
    means = [np.asarray(ImageEnhance.Contrast(image).degenerate)[0, 0, 0] for image in small]
    assert colour.mean_level(colour.grey(levels)).flatten().tolist() == means


@every_device
@pytest.mark.parametrize("size", [16, 97])
@pytest.mark.parametrize("radii", [(0.0, 0.1, 0.5, 1.0), (1.5, 2.0, 3.3, 20.0)], ids=["small", "large"])
def test_blur_is_pillows(photographs: list[Image.Image], size: int, radii: tuple[float, ...], device: str) -> None:
    levels = levels_of(photographs, size, device)
    ours = blur.gaussian_blur(levels, torch.tensor(radii, device=device))
    theirs = [
        tvf.pil_to_tensor(image.resize((size, size)).filter(ImageFilter.GaussianBlur(radius)))
        for image, radius in zip(photographs, radii, strict=True)
    ]
    off = difference(ours, torch.stack(theirs))
    assert off.mean((1, 2, 3)).max() < 0.7  # Pillow rounds six times
    assert off.max() <= 3
    assert radii[0] > 0 or torch.equal(ours[0], levels[0])


def test_blur_keeps_even_areas_and_their_mean() -> None:
    boxes = blur.box_blurring(blur.box_radius(torch.tensor([0.0, 0.3, 2.0, 9.0])), 12)
    torch.testing.assert_close(boxes.sum(-1), torch.ones(4, 12))
    assert (boxes >= 0).all()
    assert torch.equal(boxes[0], torch.eye(12))


@every_device
def test_each_view_has_its_own_order(photographs: list[Image.Image], device: str) -> None:
    vivid = CropConfig(jitter=1.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.2, grey=0.0)
    recipes = [ViewRecipe(32, (0.5, 1.0), colour=vivid)] * 6
    batch, drawn = batch_of(photographs, recipes, num_global=6)
    assert len({p.jitter.order for row in drawn for p in row if p.jitter is not None}) > 10
    off = difference(batch.to(device).global_crops, plain(photographs, 32, drawn, slice(6)))
    assert off.mean((2, 3, 4)).max() < 1.5


@every_device
@pytest.mark.parametrize("at_once", [None, 30_000], ids=["whole", "in-parts"])
def test_whole_pipelines_agree_with_the_plain_renderer(
    photographs: list[Image.Image], at_once: int | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once is not None:
        monkeypatch.setattr(views, "MAX_CROP_VALUES", at_once * 30)
        monkeypatch.setattr(views, "MAX_COLOUR_VALUES", at_once)
    big, small = ViewRecipe(64, (0.25, 1.0), **FULL), ViewRecipe(32, (0.05, 0.25), **FULL)
    images = photographs * 3
    batch, drawn = batch_of(images, [big, big, *[small] * 4])
    rendered = batch.to(device)
    assert rendered.local_crops is not None
    assert (rendered.global_crops.shape, rendered.local_crops.shape) == ((2, 12, 3, 64, 64), (4, 12, 3, 32, 32))
    assert (rendered.global_crops.dtype, rendered.global_crops.device.type) == (torch.uint8, device)
    torch.testing.assert_close(rendered.boxes.cpu(), stack_boxes(drawn), rtol=0, atol=0)
    for ours, size, which in [(rendered.global_crops, 64, slice(2)), (rendered.local_crops, 32, slice(2, 6))]:
        off = difference(ours, plain(images, size, drawn, which))
        assert off.mean() < 0.5
        assert off.mean((2, 3, 4)).max() < 2


@every_device
def test_a_batch_is_the_same_each_time(photographs: list[Image.Image], device: str) -> None:
    batch, _ = batch_of(photographs, [ViewRecipe(32, (0.25, 1.0), **FULL)] * 2)
    assert torch.equal(batch.to(device).global_crops, batch.to(device).global_crops)


def test_a_joined_batch_is_that_of_all_its_images(photographs: list[Image.Image]) -> None:
    recipes = [ViewRecipe(32, (0.25, 1.0)), ViewRecipe(32, (0.25, 1.0)), ViewRecipe(16, (0.05, 0.25))]
    whole, drawn = batch_of(photographs, recipes)
    collator = DecodingCollator(recipes, 2, 0)
    parts = [
        collated(collator, [photographs[i] for i in chosen], [drawn[i] for i in chosen], chosen)
        for chosen in ([0], [1, 2], [3])
    ]
    joined = collator.join(parts, pin_memory=False)
    ours, theirs = joined.to("cpu"), whole.to("cpu")
    assert ours.local_crops is not None
    assert theirs.local_crops is not None
    assert torch.equal(ours.global_crops, theirs.global_crops)
    assert torch.equal(ours.local_crops, theirs.local_crops)
    assert torch.equal(ours.boxes, theirs.boxes)
    assert torch.equal(ours.samples, theirs.samples)


def test_large_images_are_shrunk_and_boxes_stay(photographs: list[Image.Image]) -> None:
    recipes = [ViewRecipe(32, (0.25, 1.0), flip=0.5)] * 4
    batch, drawn = batch_of(photographs, recipes, num_global=4, max_pixels=40_000)
    areas, sizes = batch.sizes.prod(1), torch.tensor([image.size for image in photographs])
    assert ((areas <= 40_000) & (areas > 39_000) | (sizes.prod(1) <= 40_000)).all()
    assert len(batch.pixels) == int(areas.sum())
    torch.testing.assert_close(batch.sizes[:, 0] / batch.sizes[:, 1], sizes[:, 0] / sizes[:, 1], rtol=0.01, atol=0)
    rendered = batch.to("cpu")
    torch.testing.assert_close(rendered.boxes, stack_boxes(drawn), rtol=0, atol=0)
    off = difference(rendered.global_crops, plain(photographs, 32, drawn, slice(4)))
    assert off.mean() < 2  # shrunk twice is a little softer
    moved = difference(rendered.global_crops, plain(photographs, 32, drawn, slice(4)).roll(1, -1))
    assert off.mean() < 0.5 * moved.mean(), "views lie elsewhere than was drawn"


def test_rasters_and_pillow_images_are_shrunk_alike(photographs: list[Image.Image]) -> None:
    raster = Raster(torch.from_numpy(np.array(photographs[0])).permute(2, 0, 1))
    ours, theirs = shrink(raster, 5_000), shrink(photographs[0], 5_000)
    assert isinstance(ours, Image.Image)
    assert isinstance(theirs, Image.Image)
    assert ours.size[0] * ours.size[1] <= 5_000
    assert ours.tobytes() == theirs.tobytes()
    assert shrink(raster, 0) is raster
    recipes = [ViewRecipe(32, (0.25, 1.0), **FULL)] * 2
    collator, (_, drawn) = DecodingCollator(recipes, 2, 0), batch_of(photographs[:1], recipes)
    stored = [collator.prepare(image, drawn[0])[0] for image in (raster, photographs[0])]
    assert torch.equal(*stored)


def test_images_of_extreme_sizes_keep_their_colour() -> None:
    images = [Image.new("RGB", size, (10, 200, 30)) for size in [(1, 1), (1, 400), (400, 1), (3, 2)]]
    recipe = ViewRecipe(16, (0.05, 1.0), flip=0.5, blur=0.5)
    batch, _ = batch_of(images, [recipe] * 2, max_pixels=100)
    assert (batch.to("cpu").global_crops == torch.tensor([10, 200, 30]).view(3, 1, 1)).all()


@pytest.mark.slow
def test_operations_are_one_graph_each() -> None:
    """A graph without breaks can be compiled."""
    levels, ones = torch.randint(0, 256, (2, 3, 8, 8)).float(), torch.ones(2)
    boxes = torch.tensor([[[0.0, 1.0, 6.0, 5.0, 1.0], [0.0, 0.0, 8.0, 8.0, 0.0]]])
    for operation, inputs in [
        (crop_resize, (levels, boxes, (4, 4))),
        (blur.gaussian_blur, (levels, ones)),
        (colour.shift_hue, (levels, ones)),
        (colour.solarize, (levels,)),
    ]:
        compiled = torch.compile(operation, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), operation(*inputs))


def test_nothing_waits_for_the_device(photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no values: reading one, or mixing devices, fails."""
    monkeypatch.setattr(views, "MAX_CROP_VALUES", 10**6)
    monkeypatch.setattr(views, "MAX_COLOUR_VALUES", 10**5)
    big, small = ViewRecipe(64, (0.25, 1.0), **FULL), ViewRecipe(32, (0.05, 0.25), **FULL)
    batch, _ = batch_of(photographs * 3, [big, big, *[small] * 4])
    shapes = [
        tuple(v.shape) for v in views.render_views(batch.pixels.to("meta"), batch.sizes, [*batch.tables.values()])
    ]
    assert shapes == [(2, 12, 3, 64, 64), (4, 12, 3, 32, 32)]


def test_an_order_may_leave_adjustments_out(photographs: list[Image.Image]) -> None:
    recipes = [ViewRecipe(32, (0.25, 1.0))] * 2
    jitters = [ColourJitter(1.3, 0.7, 1.0, 0.0, ("contrast", "brightness")), ColourJitter(1.0, 1.0, 1.0, 0.2, ("hue",))]
    drawn = [
        [replace(draw_view(r, image.size, generator(0, 0, 0, v)), jitter=jitters[v]) for v, r in enumerate(recipes)]
        for image in photographs
    ]
    rendered = collated(DecodingCollator(recipes, 2, 0), photographs, drawn, range(4)).to("cpu")
    off = difference(rendered.global_crops, plain(photographs, 32, drawn, slice(2)))
    assert off.mean((2, 3, 4)).max() < 0.6
