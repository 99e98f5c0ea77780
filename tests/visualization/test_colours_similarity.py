"""Similarity maps, and the features whose cosines they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.visualization.colours import similarity_over, similarity_range, unit_patch_features
from tests.helpers.colour_encoder import ColourEncoder, ConvolutionEncoder


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


def test_map_is_brightest_where_it_is_highest() -> None:
    similarity = torch.zeros(4, 4)
    similarity[1, 2] = 1
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    drawn = np.asarray(similarity_over(grey, similarity, similarity_range(similarity)).convert("L"), int)
    assert [int(index) // 10 for index in np.unravel_index(drawn.argmax(), drawn.shape)] == [1, 2]


def test_constant_map_can_be_drawn() -> None:
    similarity = torch.full((3, 3), 0.4)
    assert similarity_range(similarity) == pytest.approx((0.4, 0.4))
    drawn = similarity_over(Image.new("RGB", (9, 9)), similarity, similarity_range(similarity))
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) == 1


def test_map_takes_the_colours_of_viridis_and_the_light_of_the_image() -> None:
    similarity = torch.tensor([[0.0, 1.0]])
    image = Image.new("RGB", (40, 10), (100, 100, 100))
    drawn = np.asarray(similarity_over(image, similarity, (0.0, 1.0)), int)
    assert np.abs(drawn[:, 0] - (0.72 * np.array([68, 1, 84]) + 28)).max() <= 1
    assert np.abs(drawn[:, -1] - (0.72 * np.array([253, 231, 37]) + 28)).max() <= 1
