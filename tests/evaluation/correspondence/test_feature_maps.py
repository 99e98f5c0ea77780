"""Feature maps of whole images: pixels and places, strides, blocks and facets, and that geometry knows no left or
right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.data.decode.pillow import Picture
from selfpatch.evaluation.correspondence import evaluate as protocol
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.correspondence.evaluate import transfer_keypoints
from selfpatch.evaluation.correspondence.feature_maps import DenseEncoder, FeatureMap, network_size
from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder


def noise(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def as_it_is(side: int, **settings: Any) -> CorrespondenceConfig:
    """No resizing of images whose longer side is `side`."""
    return CorrespondenceConfig(resolution=side, shape="keep", **settings)


def tiny_vit() -> BranchEncoder:
    torch.manual_seed(0)
    shape = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=8, grid=4, position_embedding="size")
    return BranchEncoder(build_backbone(shape), None).eval()


def tiny_swin() -> BranchEncoder:
    torch.manual_seed(0)
    return BranchEncoder(build_backbone(SwinConfig(embed_dim=8, depths=(1, 1), first_heads=1)), None).eval()


def test_centres_of_patches_in_pixels() -> None:
    """Without resizing, the first patch of 8 pixels has its centre between pixels 3 and 4."""
    dense = DenseEncoder(MeanColour(8), as_it_is(64))(noise(0))
    cells = torch.tensor([[0.0, 0.0], [1.0, 0.0], [7.0, 5.0]])
    assert dense.points(cells).tolist() == [[3.5, 3.5], [11.5, 3.5], [59.5, 43.5]]
    torch.testing.assert_close(dense.cells(dense.points(cells)), cells)


@pytest.mark.parametrize("stride", [None, 4, 2])
@pytest.mark.parametrize("original", [(64, 48), (50, 91), (3000, 40), (1, 1)])
def test_places_and_pixels_are_inverse_and_symmetric(stride: int | None, original: tuple[int, int]) -> None:
    """The first and the last place lie as far from their sides, in the image's own pixels."""
    dense = DenseEncoder(MeanColour(8), CorrespondenceConfig(resolution=64, stride=stride))(noise(0, *original))
    height, width, _ = dense.features.shape
    corners = torch.tensor([[0.0, 0.0], [width - 1.0, height - 1.0]], dtype=torch.float64)
    points = dense.points(corners)
    torch.testing.assert_close(dense.cells(points), corners)
    for axis in (0, 1):
        torch.testing.assert_close(points[0, axis], original[axis] - 1 - points[1, axis])
    assert dense.original == original


@pytest.mark.parametrize("stride", [None, 4])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", ["square", "keep"])
def test_flipping_both_images_flips_the_matches(stride: int | None, sampling: Any, shape: Any) -> None:
    """Of features that know no left or right; the images are resized by fractions, differently."""
    encode = DenseEncoder(MeanColour(8), CorrespondenceConfig(resolution=96, shape=shape, stride=stride))
    source, target = noise(1, 70, 50), noise(2, 91, 113)
    points = torch.from_numpy(np.random.default_rng(3).uniform(0, 49, (40, 2)))
    found = transfer_keypoints(encode(source), encode(target), points, sampling, "patches")
    mirrored = torch.stack([69 - points[:, 0], points[:, 1]], dim=1)
    mirror_found = transfer_keypoints(encode(flipped(source)), encode(flipped(target)), mirrored, sampling, "patches")
    expected = torch.stack([90 - found[:, 0], found[:, 1]], dim=1)
    assert (mirror_found - expected).abs().max(1).values.lt(1e-6).double().mean() > 0.95, "rounding decides the rest"


def test_sampling_between_patches_by_hand() -> None:
    features = torch.arange(6.0).view(2, 3, 1)  # not of unit length, so that means can be read off
    dense = FeatureMap(features, 4.0, 8.0, (24, 16), (24, 16))
    at = torch.tensor([[3.5, 3.5], [7.5, 3.5], [7.5, 7.5], [19.5, 11.5], [0.0, 0.0], [23.0, 15.0]])
    assert dense.at(at, "bilinear").flatten().tolist() == [0, 0.5, 2, 5, 0, 5]
    assert dense.at(at[[0, 3, 4, 5]] + 0.2, "nearest").flatten().tolist() == [0, 5, 0, 5]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("original", [(31, 22), (7, 90)])
def test_cosines_of_pixels_are_those_of_enlarged_features(original: tuple[int, int], stride: int) -> None:
    """As plainly written: the map's features between its centres, brought to unit length, times the others."""
    dense = DenseEncoder(RawPatch(4), CorrespondenceConfig(resolution=40, stride=stride))(noise(10, *original))
    features = F.normalize(torch.randn(3, dense.features.shape[-1], generator=torch.manual_seed(0)), dim=1)
    width, height = original
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    enlarged = F.normalize(dense.at(torch.stack([x, y], dim=-1).flatten(0, 1), "bilinear"), dim=1)
    expected = (features @ enlarged.T).view(3, height, width)
    torch.testing.assert_close(dense.pixel_cosines(features), expected)


@pytest.mark.parametrize("original", [(64, 48), (33, 57)])
def test_pixels_of_an_image_are_found_in_itself(original: tuple[int, int]) -> None:
    """Between centres of patches, where they cannot be when keypoints land on these."""
    dense = DenseEncoder(RawPatch(8), CorrespondenceConfig(resolution=64))(noise(11, *original))
    points = torch.tensor([[13.0, 9.0], [25.0, 30.0], [8.0, 40.0]], dtype=torch.float64)
    assert torch.equal(transfer_keypoints(dense, dense, points, "bilinear", "pixels"), points)
    assert (transfer_keypoints(dense, dense, points, "bilinear", "patches") - points).abs().amax(1).gt(0.5).all()


def test_a_larger_image_is_resized_before_it_is_matched() -> None:
    """A keypoint of an image twice as large lands where it would in the small one."""
    small = noise(5, 64, 48)
    large = small.resize((128, 96), Image.Resampling.NEAREST)
    encode = DenseEncoder(MeanColour(8), as_it_is(64))
    points = torch.tensor([[8.0 * i + 3.5, 8.0 * i + 3.5] for i in range(6)], dtype=torch.float64)
    found = transfer_keypoints(encode(large), encode(small), 2 * points + 0.5, "nearest", "patches")
    torch.testing.assert_close(found, points)
    torch.testing.assert_close(
        transfer_keypoints(encode(small), encode(large), points, "nearest", "patches"), 2 * points + 0.5
    )


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(64, 48), (8, 24), (8, 8)])
def test_a_stride_gives_every_patch_that_begins_there(stride: int, size: tuple[int, int]) -> None:
    image = noise(6, *size)
    dense = DenseEncoder(RawPatch(8), as_it_is(max(size), stride=stride))(image)
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None] / 255
    unfolded = F.unfold(pixels, 8, stride=stride)[0].T  # [places, C * 64], channel by channel
    expected = F.normalize(unfolded, dim=1).view(*dense.features.shape)
    torch.testing.assert_close(dense.features, expected)
    assert (dense.first, dense.step) == (4, stride)


def test_a_vit_with_a_stride_sees_the_shifted_image() -> None:
    encoder = tiny_vit()
    image = noise(7, 32, 24)
    dense = DenseEncoder(encoder, as_it_is(32, stride=4))(image)
    assert dense.features.shape == (5, 7, 16)
    shifted = DenseEncoder(encoder, as_it_is(24))(image.crop((4, 4, 28, 20)))
    torch.testing.assert_close(dense.features[1::2, 1::2], shifted.features)
    plain = DenseEncoder(encoder, as_it_is(32))(image)
    torch.testing.assert_close(dense.features[::2, ::2], plain.features)


def features_of(encoder: BranchEncoder, image: Picture, **settings: Any) -> Tensor:
    return DenseEncoder(encoder, as_it_is(64, **settings))(image).features


def test_blocks_and_facets_of_a_vit() -> None:
    encoder, image = tiny_vit(), noise(8)
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    normalised = (pixels - mean) / std

    def l2_normalize(features: Tensor) -> Tensor:
        return F.normalize(features.detach(), dim=-1)

    torch.testing.assert_close(features_of(encoder, image), l2_normalize(encoder.patches(normalised)[0].movedim(0, -1)))
    torch.testing.assert_close(
        features_of(encoder, image, block=2), l2_normalize(encoder.backbone.maps(normalised, [2])[0][0])
    )
    for facet in ("key", "query", "value"):
        last, second = (encoder.backbone.facet(normalised, facet, block)[0] for block in (-1, 1))
        torch.testing.assert_close(features_of(encoder, image, facet=facet), l2_normalize(last))
        torch.testing.assert_close(features_of(encoder, image, facet=facet, block=2), l2_normalize(second))
    torch.testing.assert_close(
        features_of(encoder, image, facet="key", depth=2 / 3), features_of(encoder, image, facet="key", block=2)
    )


def test_stages_of_a_swin_have_their_own_step() -> None:
    encoder, image = tiny_swin(), noise(9)
    for stage, step in [(1, 4), (2, 8)]:
        dense = DenseEncoder(encoder, as_it_is(64, stage=stage))(image)
        assert (dense.first, dense.step) == (step / 2, step)
        assert dense.features.shape[:2] == (48 // step, 64 // step)
        assert dense.points(torch.tensor([[0.0, 0.0]])).tolist() == [[(step - 1) / 2] * 2]
    dense = DenseEncoder(encoder, as_it_is(64, stage=1, stride=2))(image)
    assert (dense.first, dense.step, dense.features.shape[:2]) == (2, 2, (23, 31))
    assert DenseEncoder(encoder, as_it_is(60, stage=1))(noise(9, 60, 44)).features.shape[:2] == (11, 15)
    with pytest.raises(ValueError, match="stride 8 does not divide the patch size 4"):
        DenseEncoder(encoder, as_it_is(64, stage=1, stride=8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 3}, "stride 3 does not divide the patch size 8; use e.g. 4"),
        ({"stride": 0}, "stride is 0; use a number above 0"),
        ({"block": 4}, "block is 4, but this vit has 3; use 1 to 3"),
        ({"block": 0}, "block is 0; use a number above 0"),
        ({"facet": "keys"}, "facet is 'keys'; use one of: token, key"),
        ({"sampling": "cubic"}, "sampling is 'cubic'"),
        ({"places": "pixel"}, "places is 'pixel'; use one of: patches, pixels"),
        ({"resolution": 0}, "resolution is 0; use 1 or more"),
    ],
)
def test_words_for_what_a_vit_has_not(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DenseEncoder(tiny_vit(), CorrespondenceConfig(**settings))


def test_words_for_what_a_plain_encoder_has_not() -> None:
    with pytest.raises(ValueError, match="facet is 'key', but only a ViT"):
        DenseEncoder(tiny_swin(), CorrespondenceConfig(facet="key"))
    with pytest.raises(ValueError, match="block is 1, but a MeanColour has no layers"):
        DenseEncoder(MeanColour(8), CorrespondenceConfig(block=1))


def test_sizes_are_whole_patches_and_bounded() -> None:
    assert network_size((500, 333), CorrespondenceConfig(resolution=224, shape="keep"), 16) == (224, 144)
    assert network_size((333, 500), CorrespondenceConfig(resolution=224), 16) == (224, 224)
    assert network_size((3000, 40), CorrespondenceConfig(resolution=224, shape="keep"), 16) == (224, 16)
    assert network_size((1, 1), CorrespondenceConfig(resolution=5), 16) == (16, 16)


def test_features_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        noise(i).save(path)
    encoded: list[int] = []
    plain = DenseEncoder(MeanColour(8), as_it_is(64))

    def encode(picture: Picture) -> FeatureMap:
        encoded.append(1)
        return plain(picture)

    monkeypatch.setattr(protocol, "MAX_FEATURE_VALUES", 3 * 8 * 6 * 3)  # three images
    store = protocol._FeatureCache(encode, 3)  # type: ignore[arg-type]
    for number in (0, 1, 2, 0, 1, 2, 3, 2, 1, 0):
        torch.testing.assert_close(store[paths[number]].features, plain(noise(number)).features)
    assert len(encoded) == 5, "the fourth drove out the first, which was asked for again"
