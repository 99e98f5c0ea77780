"""Picture sheets and `show` with a small encoder whose features are the colours of the patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from selfpatch.core.types import Encoder
from selfpatch.ops.neighbours import neighbour_table
from selfpatch.visualization.canvas import GAP, HEADING_HEIGHT, MARGIN
from selfpatch.visualization.features import unit_patch_features
from selfpatch.visualization.maps import patch_map
from selfpatch.visualization.pca import pca_colours
from selfpatch.visualization.queries import patches_at, salient_patches
from selfpatch.visualization.sheet import COLUMNS, TILE, picture_sheet
from selfpatch.visualization.show import PANEL, TALL_PANEL, find_positives, resized, show


class ColourEncoder:
    """Mean colour and mean deviation from it, patch by patch."""

    dim, patch_size = 6, 16
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    device = torch.device("cpu")

    def patches(self, images: Tensor) -> Tensor:
        mean = F.avg_pool2d(images, self.patch_size)
        deviation = F.avg_pool2d((images - F.interpolate(mean, scale_factor=self.patch_size)).abs(), self.patch_size)
        return torch.cat([mean, deviation], 1)

    def image(self, images: Tensor) -> Tensor:
        return self.patches(images).mean((2, 3))


class ConvolutionEncoder(nn.Module):
    dim, patch_size = 8, 16
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 16, 16).double()

    def patches(self, images: Tensor) -> Tensor:
        return self.convolution(images.double())

    def image(self, images: Tensor) -> Tensor:
        return self.patches(images).mean((2, 3))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A wide photograph and a tall one of the same name in another folder."""
    pixels = skimage.data.astronaut()
    places = [tmp_path / "a" / "astronaut.png", tmp_path / "b" / "astronaut.png"]
    for place, part in zip(places, [pixels[:256], pixels[:, 100:356]], strict=True):
        place.parent.mkdir()
        Image.fromarray(part).save(place)
    return places


@pytest.fixture
def crops() -> Tensor:
    """uint8 [3, 3, 64, 64]."""
    pixels = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
    return torch.stack([pixels[:, i : i + 64, i : i + 64] for i in (0, 100, 200)])


def test_the_test_encoders_are_encoders() -> None:
    assert isinstance(ColourEncoder(), Encoder)
    assert isinstance(ConvolutionEncoder(), Encoder)


def test_features_are_normalised_before_and_after_the_network(crops: Tensor) -> None:
    encoder = ColourEncoder()
    features = unit_patch_features(encoder, crops)
    assert features.shape == (3, 4, 4, 6)
    x = (crops[0, :, :16, :16].double() / 255 - torch.tensor(encoder.mean).double()[:, None, None]) / torch.tensor(
        encoder.std
    ).double()[:, None, None]
    colour = x.mean((1, 2))
    expected = torch.cat([colour, (x - colour[:, None, None]).abs().mean((1, 2))])
    assert torch.allclose(features[0, 0, 0].double(), expected / expected.norm(), atol=1e-5)


def test_features_of_a_module_keep_no_gradient_and_come_in_float32(crops: Tensor) -> None:
    features = unit_patch_features(ConvolutionEncoder(), crops.repeat(7, 1, 1, 1))  # more than one chunk
    assert features.shape == (21, 4, 4, 8)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.allclose(features[:3], features[18:], atol=1e-6)


def test_features_refuse_what_is_no_image(crops: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        unit_patch_features(ColourEncoder(), crops.double())
    with pytest.raises(ValueError, match="60 x 64"):
        unit_patch_features(ColourEncoder(), crops[..., :60])


def test_picture_sheet_has_a_tile_for_each_image(crops: Tensor, tmp_path: Path) -> None:
    path = picture_sheet({"colours": ColourEncoder()}, crops, tmp_path / "pictures" / "0001.png", title="epoch 1")
    with Image.open(path) as plain:
        assert plain.width == 2 * MARGIN + 3 * TILE + 2 * GAP
        height = plain.height
        corner = np.asarray(plain.convert("RGB"))[-MARGIN - TILE : -MARGIN, MARGIN : MARGIN + TILE]
    assert len(np.unique(corner.reshape(-1, 3), axis=0)) <= 16  # 4 x 4 patches, each of one colour
    assert (corner[0, : TILE // 4] == corner[0, 0]).all()

    networks = {"colours": ColourEncoder(), "convolution": ConvolutionEncoder()}
    path = picture_sheet(networks, crops, tmp_path / "both.png", title="epoch 1")
    with Image.open(path) as compared:
        assert compared.height > height + TILE


def test_each_network_of_a_sheet_has_a_row_of_its_own_colours(crops: Tensor, tmp_path: Path) -> None:
    """Networks of different patch sizes stand one below the other, each as it is alone."""
    fine, coarse = ColourEncoder(), ColourEncoder()
    fine.patch_size = 8
    path = picture_sheet({"fine": fine, "coarse": coarse, "again": fine}, crops, tmp_path / "sheet.png", title="t")
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    pitch = TILE + HEADING_HEIGHT + GAP
    for above, network in enumerate([fine, coarse, fine]):
        bottom = len(sheet) - MARGIN - (2 - above) * pitch
        colours = pca_colours(unit_patch_features(network, crops))
        for column in range(3):
            left = MARGIN + column * (TILE + GAP)
            drawn = sheet[bottom - TILE : bottom, left : left + TILE]
            np.testing.assert_array_equal(drawn, np.asarray(patch_map(colours[column], (TILE, TILE))))


def test_a_sheet_needs_images_that_every_network_can_cut(crops: Tensor, tmp_path: Path) -> None:
    fine, coarse = ColourEncoder(), ColourEncoder()
    fine.patch_size = 7
    with pytest.raises(
        ValueError, match=r"64 x 64 pixels cannot be cut into patches of 7 for fine; .* multiples of 112"
    ):
        picture_sheet({"coarse": coarse, "fine": fine}, crops, tmp_path / "none.png", title="t")
    with pytest.raises(ValueError, match="no network"):
        picture_sheet({}, crops, tmp_path / "none.png", title="t")
    assert not (tmp_path / "none.png").exists()


def test_picture_sheet_is_the_same_every_time(crops: Tensor, tmp_path: Path) -> None:
    files = [
        picture_sheet({"colours": ColourEncoder()}, crops, tmp_path / f"{i}.png", title="t").read_bytes()
        for i in range(2)
    ]
    assert files[0] == files[1]


def test_picture_sheet_breaks_long_rows(crops: Tensor, tmp_path: Path) -> None:
    path = picture_sheet({"colours": ColourEncoder()}, crops.repeat(4, 1, 1, 1), tmp_path / "s.png", title="t")
    with Image.open(path) as image:
        assert image.width == 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
        assert image.height > 4 * TILE


def test_picture_sheet_of_a_diverged_network_is_drawn(crops: Tensor, tmp_path: Path) -> None:
    encoder = ConvolutionEncoder()
    nn.init.constant_(encoder.convolution.weight, float("nan"))
    assert picture_sheet({"diverged": encoder}, crops, tmp_path / "nan.png", title="t").exists()
    with pytest.raises(ValueError, match="at least one"):
        picture_sheet({"diverged": encoder}, crops[:0], tmp_path / "none.png", title="t")


def test_show_writes_one_picture_an_image(photos: list[Path], tmp_path: Path) -> None:
    written = show(ColourEncoder(), photos, tmp_path / "out", resolution=96)
    assert [path.name for path in written] == ["astronaut.png", "astronaut-2.png"]
    sizes = [(PANEL, PANEL // 2), (TALL_PANEL, 2 * TALL_PANEL)]  # 192 x 96, then 96 x 192
    for path, (width, height) in zip(written, sizes, strict=True):
        with Image.open(path) as picture:
            assert picture.width == 2 * MARGIN + 5 * width + 4 * GAP
            assert 2 * height < picture.height < 2 * height + 250


def test_show_is_the_same_every_time(photos: list[Path], tmp_path: Path) -> None:
    once, again = (show(ColourEncoder(), photos[:1], tmp_path / name, resolution=96)[0] for name in ("once", "again"))
    assert once.read_bytes() == again.read_bytes()


def test_show_overwrites_no_image(photos: list[Path]) -> None:
    before = photos[0].read_bytes()
    (path,) = show(ColourEncoder(), photos[:1], photos[0].parent, resolution=64)
    assert path == photos[0].with_name("astronaut-2.png")
    assert photos[0].read_bytes() == before


@pytest.mark.parametrize(
    ("window", "k", "border"), [(3, 4, "wrap"), (3, 8, "clip"), (5, 1, "clip"), ("all", 2, "wrap")]
)
def test_show_with_queries_anywhere(photos: list[Path], tmp_path: Path, window, k: int, border) -> None:
    queries = [(0.0, 0.0), (1.0, 1.0)]
    (path,) = show(
        ColourEncoder(), photos[:1], tmp_path, resolution=64, queries=queries, k=k, window=window, border=border
    )
    with Image.open(path) as picture:
        assert picture.width == 2 * MARGIN + 3 * PANEL + 2 * GAP


def test_show_without_queries_shows_image_and_components(photos: list[Path], tmp_path: Path) -> None:
    (path,) = show(ColourEncoder(), photos[:1], tmp_path, resolution=64, queries=[])
    with Image.open(path) as picture:
        assert picture.width == 2 * MARGIN + PANEL


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
        show(encoder, photos, tmp_path, resolution=8)
    with pytest.raises(ValueError, match=r"\(1\.5, 0\).*between 0 and 1"):
        show(encoder, photos, tmp_path, resolution=64, queries=[(1.5, 0)])
    with pytest.raises(ValueError, match="window is 4"):
        show(encoder, photos, tmp_path, window=4)
    diverged = ConvolutionEncoder()
    nn.init.constant_(diverged.convolution.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        show(diverged, photos, tmp_path, resolution=64)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((854, 480), 480, (848, 480)),
        ((480, 854), 240, (240, 432)),
        ((100, 1000), 50, (48, 496)),
        ((3, 3), 20, (16, 16)),
    ],
)
def test_resized_sides_are_multiples_of_the_patch(size, resolution: int, expected) -> None:
    assert resized(Image.new("RGB", size), resolution, 16).size == expected


@pytest.mark.parametrize("border", ["wrap", "clip"])
@pytest.mark.parametrize("window", [3, 5, "all"])
def test_positives_are_the_most_similar_neighbours(window, border) -> None:
    features = F.normalize(torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    table = neighbour_table(5, 6, window, border)
    for match in find_positives(features, [0, 14, 29], 4, window, border):
        neighbours = table.indices[match.query][table.valid[match.query]].tolist()
        flat = features.flatten(0, 1)
        best = sorted(neighbours, key=lambda i: -float(flat[i] @ flat[match.query]))[:4]
        assert match.candidates == neighbours
        assert match.picked == best


def test_points_fall_on_the_patches_under_them() -> None:
    assert patches_at([(0, 0), (0.99, 0.0), (0.5, 0.5), (1, 1)], (4, 6)) == [0, 5, 15, 23]
    with pytest.raises(ValueError, match="outside the image"):
        patches_at([(0.5, -0.1)], (4, 6))


def test_salient_patches_find_each_of_four_regions() -> None:
    features = torch.zeros(16, 16, 4)
    for number, (row, column) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        features[row : row + 8, column : column + 8, number] = 1
    chosen = salient_patches(features, 4)
    assert {(i // 16 // 8, i % 16 // 8) for i in chosen} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert chosen == salient_patches(features.clone(), 4)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 3), (9, 12)])
def test_salient_patches_of_any_grid_are_distinct(grid: tuple[int, int]) -> None:
    h, w = grid
    chosen = salient_patches(F.normalize(torch.ones(h, w, 3), dim=-1), 4)
    available = (h - 2) * (w - 2) if min(grid) > 2 else h * w
    assert len(chosen) == len(set(chosen)) == min(4, available)
    assert all(0 <= i < h * w for i in chosen)
