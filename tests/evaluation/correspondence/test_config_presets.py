"""Transferred keypoints of DIFT's and Probe3D's presets against the steps of their released code on plain tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.data.decode.multichannel import Raster
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.correspondence.evaluate import transfer_keypoints
from selfpatch.evaluation.correspondence.feature_maps import DenseEncoder, padded_to_square
from selfpatch.evaluation.encoders import MeanColour

SIZES = [(60, 44), (36, 52)]
"""Sizes of source and target."""
SIDE, PATCH = 32, 4


class Odd(MeanColour):
    """Eight features of different lengths for each patch, from its colour."""

    def patches(self, images: Tensor) -> Tensor:
        weights = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        colours = super().patches(images) - 0.5
        return torch.einsum("dc,bchw->bdhw", weights, colours).sin() * (1 + 5 * colours[:, :1].abs())


def photos() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    coarse = [Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)) for _ in SIZES]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, SIZES, strict=True)]


def keypoints() -> Tensor:
    rng = np.random.default_rng(2)
    return torch.from_numpy(np.stack([rng.integers(0, side, 40) for side in SIZES[0]], axis=1).astype(np.float64))


def encoded(image: Image.Image) -> Tensor:
    """[1, D, h, w] of the image resized to the square of the protocol."""
    pixels = np.array(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return Odd(PATCH).patches(torch.from_numpy(pixels).movedim(-1, 0)[None] / 255)


def dift(points: Tensor) -> Tensor:
    """Maps are upsampled to the images, and one pixel after the other is compared."""
    source, target = (
        F.interpolate(encoded(image), size=image.size[::-1], mode="bilinear", align_corners=False)[0]
        for image in photos()
    )
    found = []
    for x, y in points.long().tolist():
        cosines = F.cosine_similarity(target, source[:, y, x][:, None, None], dim=0)
        best = int(cosines.argmax())
        found.append([best % SIZES[1][0], best // SIZES[1][0]])
    return torch.tensor(found, dtype=torch.float64)


def probe3d(points: Tensor) -> Tensor:
    """Images are padded with white, features are sampled between the corners, and a match is the corner of a patch."""
    maps = []
    for image in photos():
        side = max(image.size)
        white = np.full((side, side, 3), 255, np.uint8)
        white[: image.height, : image.width] = np.array(image)
        maps.append(F.normalize(encoded(Image.fromarray(white))[0], dim=0))
    grid = (2 * points / max(SIZES[0]) - 1).float()[None, None]
    features = F.grid_sample(maps[0][None], grid, mode="bilinear", align_corners=True)[0, :, 0].T
    best = torch.einsum("kd,dhw->khw", features, maps[1]).flatten(1).argmax(1)
    count = SIDE // PATCH
    return torch.stack([best % count, best // count], dim=1).double() / count * max(SIZES[1])


ORACLES = {"dift": dift, "probe3d": probe3d}
CHANGED = {
    "dift": [{"interpolated": "unit"}, {"places": "patches"}],
    "probe3d": [{"alignment": "centre"}, {"shape": "square"}],
}
"""Settings without which a preset is another protocol."""


def transferred(points: Tensor, preset: str, **settings: object) -> Tensor:
    config = CorrespondenceConfig.from_settings({"preset": preset, "resolution": SIDE, **settings})
    encode = DenseEncoder(Odd(PATCH), config)
    source, target = map(encode, photos())
    return transfer_keypoints(source, target, points, config.sampling, config.places)


@pytest.mark.parametrize("preset", [*ORACLES])
def test_keypoints_are_transferred_as_in_the_released_code(preset: str) -> None:
    points = keypoints()
    expected = ORACLES[preset](points)
    torch.testing.assert_close(transferred(points, preset), expected)
    for changed in CHANGED[preset]:
        assert not torch.allclose(transferred(points, preset, **changed), expected)


def test_cosines_of_raw_features() -> None:
    config = CorrespondenceConfig(resolution=SIDE, interpolated="raw")
    target = DenseEncoder(Odd(PATCH), config)(photos()[1])
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    expected = F.cosine_similarity(features[:, None, None], target.features[None], dim=-1)
    torch.testing.assert_close(target.cosines(F.normalize(features, dim=1)), expected)


def test_dinov3_is_probe3d_with_all_pairs_at_1024_pixels() -> None:
    theirs, probe = (CorrespondenceConfig.presets[name] for name in ("dinov3", "probe3d"))
    assert theirs == {name: value for name, value in probe.items() if name != "pairs_per_category"} | {
        "resolution": 1024
    }


def test_padding_with_white() -> None:
    image = Image.new("RGB", (5, 3), (1, 2, 3))
    pixels = np.array(padded_to_square(image))
    assert pixels.shape == (5, 5, 3)
    assert (pixels[:3] == (1, 2, 3)).all()
    assert (pixels[3:] == 255).all()
    with pytest.raises(ValueError, match="only RGB images are padded with white; use square or keep"):
        padded_to_square(Raster(torch.zeros(4, 3, 5)))
