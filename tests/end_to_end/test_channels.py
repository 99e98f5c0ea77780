"""Images of any number of channels: rendered as the plain renderer does, normalised by what they hold, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multichannel import gaussian_blur
from selfpatch.data.augment.multicrop import ColourJitter, ViewParameters, ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render, to_tensor
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import read_image, read_picture
from selfpatch.data.images import load_images
from selfpatch.data.sample_images import HELD_OUT, source_folder
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.statistics import SMALLEST_STD, channel_statistics
from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.evaluation.view_matching.dataset import load_pairs
from selfpatch.evaluation.view_matching.evaluate import view_matching
from selfpatch.models.features import patch_features
from selfpatch.ops.images import normalise, to_common_dtype
from selfpatch.visualization.config import ShowConfig
from selfpatch.visualization.layout import to_image
from selfpatch.visualization.sheet import picture_sheet
from selfpatch.visualization.show import show
from tests.helpers.raster_files import bands, write_tiff

PLAIN = {"flip": False, "jitter": None, "grey": False, "blur_radius": 0.0, "solarize": False}
LEVEL = 1.0
"""One level of 8 bits."""


def raster_of(image: Image.Image) -> Raster:
    """An RGB picture as the raster that it would be, were it none."""
    return Raster(to_tensor(image))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return read_image(source_folder() / HELD_OUT[0])


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Ten tiles of 13 bands whose levels differ by orders of magnitude."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    rng = np.random.default_rng(0)
    levels = np.geomspace(10, 4000, 13)
    for i in range(10):
        field = np.kron(rng.random((8, 8, 13)), np.ones((6, 6, 1))) * levels * (1 + 0.1 * i)
        write_tiff(folder / f"{i}.tif", field.astype(np.uint16))
    return folder


def test_dark_16_bit_grey_keeps_all_its_levels(tmp_path: Path) -> None:
    levels = np.arange(1024, dtype=np.uint16).reshape(32, 32)  # 8 bits would leave 4 or 5
    Image.fromarray(levels).save(tmp_path / "a.png")
    view = render(read_picture(tmp_path / "a.png", 1), 32, ViewParameters(0, 0, 32, 32, **PLAIN))
    assert len(view.unique()) == 1024
    assert view.max() <= 1


@given(
    width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(8, 48), seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60)
def test_crops_agree_with_the_plain_renderer(width: int, height: int, size: int, seed: int) -> None:
    # Away from black and white: there, what bicubic overshoots is cut off after one pass by both, but not the same one.
    pixels = np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    p = draw_view(ViewRecipe(size, (0.05, 1.0), flip=0.5), image.size, generator(seed, 0, 0, 0))
    plain = render(image, size, p).float()
    own, deep = (render(Raster(values), size, p) for values in (to_tensor(image), to_tensor(image) / 255))
    assert own.dtype == torch.uint8
    assert own.shape == deep.shape == plain.shape
    for view in (own.float(), deep * 255):
        assert (view - plain).abs().max() <= 2 * LEVEL
        assert (view - plain).abs().mean() < LEVEL


@pytest.mark.parametrize("name", ["brightness", "contrast"])
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.0, 1.3, 1.8])
@pytest.mark.parametrize("deep", [False, True])
def test_adjustments_agree_with_the_plain_renderer(photo: Image.Image, name: str, factor: float, deep: bool) -> None:
    image = photo if name == "brightness" else photo.convert("L").convert("RGB")
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | {name: factor}
    jitter = ColourJitter(**factors, order=("brightness", "contrast", "saturation", "hue"))
    p = ViewParameters(30, 20, 200, 150, **(PLAIN | {"jitter": jitter, "flip": True}))
    plain = render(image, 64, p).float()
    raster = raster_of(image)
    view = render(Raster(raster.pixels / 255) if deep else raster, 64, p)
    assert view.dtype == (torch.float32 if deep else torch.uint8)
    difference = (view.float() * (255 if deep else 1) - plain).abs()
    assert difference.mean() < LEVEL
    assert difference.max() <= 6 * LEVEL


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_near_that_of_pillow(photo: Image.Image, radius: float) -> None:
    image = photo.resize((96, 96))
    blurred = gaussian_blur(to_tensor(image), radius)
    expected = to_tensor(image.filter(ImageFilter.GaussianBlur(radius)))
    difference = (blurred.int() - expected.int()).abs().float()
    assert difference.mean() < LEVEL
    assert difference.max() <= 6 * LEVEL
    unchanged = (to_tensor(image).int() - expected.int()).abs().float().mean()
    assert radius < 0.5 or difference.mean() < unchanged / 2


def test_blur_is_the_gaussian_and_keeps_the_mean() -> None:
    point = torch.zeros(2, 41, 41)
    point[:, 20, 20] = 1
    blurred = gaussian_blur(point, 2.0)
    assert blurred.sum((1, 2)).tolist() == pytest.approx([1, 1])
    assert float(blurred[0, 20, 22] / blurred[0, 20, 20]) == pytest.approx(np.exp(-0.5), rel=1e-4)
    torch.testing.assert_close(blurred, blurred.transpose(1, 2))
    torch.testing.assert_close(gaussian_blur(torch.full((13, 1, 1), 0.3), 1.5), torch.full((13, 1, 1), 0.3))


def test_solarize_is_the_plain_one_on_8_bits(photo: Image.Image) -> None:
    p = ViewParameters(0, 0, 64, 64, **(PLAIN | {"solarize": True}))
    torch.testing.assert_close(render(raster_of(photo), 64, p), render(photo, 64, p))


def test_solarize_turns_each_deep_channel_at_half_of_its_own_white() -> None:
    pixels = torch.tensor([[[0.0, 0.02, 0.03, 0.04]], [[0.5, 0.1, 0.8, 1.0]], [[-4.0, -3.0, 0.0, 4.0]]])
    view = render(Raster(pixels.repeat(1, 4, 1)), 4, ViewParameters(0, 0, 4, 4, **(PLAIN | {"solarize": True})))
    expected = torch.tensor([[0.0, 0.02, 0.01, 0.0], [0.5, 0.1, 0.2, 0.0], [-4.0, -3.0, 0.0, -4.0]])
    torch.testing.assert_close(view[:, 0], expected)


def test_contrast_keeps_each_channels_own_mean() -> None:
    """Bands that lie far apart must not be pulled towards each other."""
    pixels = torch.rand(13, 16, 16, generator=torch.manual_seed(0)) * torch.logspace(-3, -0.5, 13)[:, None, None]
    jitter = ColourJitter(1.0, 0.5, 1.0, 0.0, ("contrast", "hue", "saturation", "brightness"))
    view = render(Raster(pixels), 16, ViewParameters(0, 0, 16, 16, **(PLAIN | {"jitter": jitter})))
    torch.testing.assert_close(view.mean((1, 2)), pixels.mean((1, 2)))
    torch.testing.assert_close(view.std((1, 2)), pixels.std((1, 2)) / 2)


def test_what_needs_colours_is_left_out() -> None:
    raster = Raster(torch.randint(0, 256, (4, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0)))
    colour = ColourJitter(1.0, 1.0, 0.2, 0.4, ("hue", "saturation", "contrast", "brightness"))
    plain = render(raster, 16, ViewParameters(0, 0, 16, 16, **PLAIN))
    coloured = render(raster, 16, ViewParameters(0, 0, 16, 16, **(PLAIN | {"jitter": colour, "grey": True})))
    torch.testing.assert_close(coloured, plain)


@pytest.mark.parametrize("sample", range(8))
def test_deep_views_stay_in_the_range_of_16_bits(sample: int) -> None:
    raster = Raster(torch.rand(13, 40, 50, generator=torch.manual_seed(0)).round())  # sharp edges: bicubic overshoots
    colour = CropConfig(jitter=0.5, brightness=0.8, contrast=0.8, grey=0.0)
    recipe = ViewRecipe(24, (0.05, 1.0), flip=0.5, blur=0.5, solarize=0.5, colour=colour)
    view = render(raster, 24, draw_view(recipe, raster.size, generator(0, 0, sample, 0)))
    assert view.shape == (13, 24, 24)
    assert view.dtype == torch.float32
    assert 0 <= view.min() < view.max() <= 1


def test_statistics_are_those_of_numpy(tiles: Path, tmp_path: Path) -> None:
    index = ImageIndex.open(tiles, tmp_path / "cache")
    stack = np.stack([tifffile.imread(tiles / f"{i}.tif") for i in range(10)]) / 65535
    mean, std = channel_statistics(index, np.arange(10), 13)
    np.testing.assert_allclose(mean, stack.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, stack.std((0, 1, 2)), rtol=1e-6)
    images = torch.stack([to_tensor(read_picture(index.path(i), 13)) for i in range(10)])
    normal = normalise(images, mean, std)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(13), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(13), atol=1e-3, rtol=0)


def test_statistics_sample_evenly_and_skip_the_unreadable(tiles: Path, tmp_path: Path) -> None:
    index = ImageIndex.open(tiles, tmp_path / "cache")
    (tiles / "4.tif").write_bytes(b"no image")
    chosen = np.stack([tifffile.imread(tiles / f"{i}.tif") for i in (0, 9)]) / 65535  # 0, 4 and 9 of ten
    mean, _ = channel_statistics(index, np.arange(10), 13, sample=3)
    np.testing.assert_allclose(mean, chosen.mean((0, 1, 2)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"no image can be read \(1 tried\), e\.g\. cannot read .*4\.tif"):
        channel_statistics(index, [4], 13)
    with pytest.raises(
        ValueError, match=r"no image can be read \(3 tried\).* number of channels is 13, not 4; .* --channels 13"
    ):
        channel_statistics(index, [0, 1, 2], 4)


def test_each_image_counts_the_same_and_a_constant_channel_divides(tmp_path: Path) -> None:
    for name, value, side in [("a", 0, 4), ("b", 100, 40)]:
        pixels = np.full((side, side, 2), 255, np.uint8)
        pixels[..., 0] = value
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    mean, std = channel_statistics(ImageIndex(tmp_path, [b"a.png", b"b.png"]), [0, 1], 2)
    assert mean == pytest.approx((50 / 255, 1.0))
    assert std == pytest.approx((50 / 255, SMALLEST_STD))
    assert normalise(torch.full((2, 1, 1), 255, dtype=torch.uint8), mean, std).isfinite().all()


def test_statistics_of_numbers_far_from_0(tmp_path: Path) -> None:
    kelvin = (np.random.default_rng(0).standard_normal((40, 40)) * 0.5 + 280).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", kelvin)
    mean, std = channel_statistics(ImageIndex(tmp_path, [b"a.tif"]), [0], 1)
    assert mean[0] == pytest.approx(kelvin.mean(dtype=np.float64), rel=1e-9)
    assert std[0] == pytest.approx(kelvin.std(dtype=np.float64), rel=1e-6)


def test_8_and_16_bits_meet_in_one_batch() -> None:
    black_to_white = [torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.tensor([[[0.0, 1.0]]])]
    assert torch.stack(to_common_dtype(black_to_white)).tolist() == [[[[0.0, 1.0]]]] * 2
    assert to_common_dtype(black_to_white[:1])[0] is black_to_white[0]


def test_whole_images_as_a_batch(tiles: Path, tmp_path: Path, photo: Image.Image) -> None:
    images, kept = load_images(ImageIndex.open(tiles, tmp_path / "cache"), [1, 0], 32, resize=40, channels=13)
    assert images.shape == (2, 13, 32, 32)
    assert images.dtype == torch.float32
    assert kept.tolist() == [1, 0]
    with_alpha = np.dstack([np.asarray(photo), np.asarray(photo)[..., 1]])
    Image.fromarray(with_alpha).save(tmp_path / "a.png")
    index = ImageIndex(tmp_path, [b"a.png"])
    four, three = (load_images(index, [0], 48, resize=64, channels=c).images.int() for c in (4, 3))
    assert (four[:, :3] - three).abs().max() <= LEVEL


@pytest.mark.parametrize("baseline", [MeanColour, RawPatch])
def test_the_dense_meter_matches_views_of_13_bands(tiles: Path, tmp_path: Path, baseline: type[MeanColour]) -> None:
    whole = ViewRecipe(48, (1.0, 1.0), (1.0, 1.0))
    _, pairs = load_pairs(ImageIndex.open(tiles, tmp_path / "cache"), np.arange(4), (whole, whole), channels=13)
    encoder = baseline(6, 13)
    assert patch_features(encoder, pairs.views_a).shape == (4, 8, 8, encoder.dim)
    assert view_matching(encoder, pairs) == 1.0


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_pictures_of_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    write_tiff(tmp_path / "a.tif", bands(channels, size=(48, 64)))
    encoder = MeanColour(8, channels)
    (drawn,) = show(encoder, [tmp_path / "a.tif"], tmp_path / "out", ShowConfig(resolution=48))
    images = load_images(ImageIndex(tmp_path, [b"a.tif"]), [0], 48, channels=channels).images
    sheet = picture_sheet({"patch features": encoder}, images, tmp_path / "sheet.png", title="bands")
    assert all(Image.open(path).mode == "RGB" for path in (drawn, sheet))


def test_an_image_is_drawn_by_its_first_channels() -> None:
    ramp = torch.linspace(0, 1, 101)
    deep = torch.stack([ramp * 0.1, ramp, 5 - ramp, ramp * 0]).view(4, 1, 101)
    drawn = np.asarray(to_image(deep))[0].astype(int)
    stretched = (((ramp - 0.02) / 0.96).clamp(0, 1) * 255).numpy()
    for channel, expected in enumerate([stretched, stretched, stretched[::-1]]):
        np.testing.assert_allclose(drawn[:, channel], expected, atol=1)
    grey = torch.randint(0, 256, (2, 5, 6), dtype=torch.uint8)
    np.testing.assert_array_equal(np.asarray(to_image(grey)), grey[0, :, :, None].expand(-1, -1, 3).numpy())
    assert np.asarray(to_image(torch.full((1, 4, 4), 0.3))).std() == 0
