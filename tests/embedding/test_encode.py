"""Columns of a batch: one pass or two, types of the numbers, and the size of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.encode import columns_of, features_of, fitted
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.models.features import image_features, patch_features
from tests.helpers.labelled_images import tiny_encoder

IMAGES = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BOTH = ("image", "patches")


@pytest.mark.parametrize("debias", [0, 1])
@pytest.mark.parametrize("kind", ["vit", "mean colour"])
def test_features_are_those_of_evaluations(kind: str, debias: int) -> None:
    encoder = MeanColour(8) if kind == "mean colour" else tiny_encoder(kind).eval()
    config = EmbedConfig(features=BOTH, dtype="float32", debias=debias)
    columns = features_of(encoder, IMAGES, config)
    shapes = columns_of(config, encoder, (16, 24))
    assert {name: tuple(x.shape[1:]) for name, x in columns.items()} == {n: shapes[n].shape for n in BOTH}
    torch.testing.assert_close(columns["image"], image_features(encoder, [IMAGES]))
    if not debias:
        torch.testing.assert_close(columns["patches"], patch_features(encoder, IMAGES))
    else:
        assert (columns["patches"] - patch_features(encoder, IMAGES)).abs().max() > 1e-4


class OfUser(nn.Module):
    """A module of a user, whose call gives two tensors of its own choice."""

    mean, std, dim, patch_size, device = (0.0,) * 3, (1.0,) * 3, 3, 8, torch.device("cpu")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image(images) + 1, self.patches(images) + 1

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 8)

    def image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def test_the_call_of_a_module_of_a_user_is_not_taken_for_its_features() -> None:
    columns = features_of(OfUser(), IMAGES, EmbedConfig(features=BOTH, dtype="float32"))
    torch.testing.assert_close(columns["image"], image_features(OfUser(), [IMAGES]))
    torch.testing.assert_close(columns["patches"], patch_features(OfUser(), IMAGES))


def test_types_of_numbers() -> None:
    encoder = tiny_encoder("vit").eval()
    exact = features_of(encoder, IMAGES, EmbedConfig(features=BOTH, dtype="float32"))
    half = features_of(encoder, IMAGES, EmbedConfig(features=BOTH, dtype="float16"))
    bytes_ = features_of(encoder, IMAGES, EmbedConfig(features=BOTH, dtype="int8"))
    for name in BOTH:
        torch.testing.assert_close(half[name], exact[name].half())
        scale = bytes_[f"{name}_scale"]
        assert bytes_[name].dtype == torch.int8
        torch.testing.assert_close(scale, exact[name].abs().amax(-1) / 127)
        error = (bytes_[name] * scale[..., None] - exact[name]).abs()
        assert (error <= 0.501 * scale[..., None]).all()
    encoder.backbone.trunk.norm.weight.data.fill_(1e6)
    with pytest.raises(ValueError, match="too large for float16; use --dtype float32"):
        features_of(encoder, IMAGES, EmbedConfig())


def test_a_picture_is_stretched_or_its_centre_kept() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    picture = Image.fromarray(pixels)
    assert fitted(picture, (20, 20), "crop").min() == 255
    assert fitted(picture, (10, 10), "crop")[:, :, 1:-1].min() == 255
    stretched = fitted(picture, (20, 30), "stretch")
    assert stretched.shape == (3, 20, 30)
    assert stretched[0, 0, :9].max() == 0
    assert stretched[0, 0, 11:19].min() == 255
