"""Normalising, batching, and the encoders without a network."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.models.features import image_features, patch_features
from selfpatch.ops.images import normalise


def test_normalise() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    out = normalise(images, (0.0, 0.2, 0.5), (1.0, 0.1, 0.25))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(normalise(images / 255, (0.0, 0.2, 0.5), (1.0, 0.1, 0.25)), out)
    for bad in (images.double(), images[:2], images.flatten()):
        with pytest.raises(ValueError, match="uint8"):
            normalise(bad, (0.0, 0.2, 0.5), (1.0, 0.1, 0.25))


@pytest.mark.parametrize("baseline", [MeanColour, RawPatch])
def test_baselines_are_encoders(baseline) -> None:
    encoder = baseline(4)
    assert isinstance(encoder, Encoder)
    images = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    features = patch_features(encoder, images)
    assert features.shape == (2, 2, 3, encoder.dim)
    corner = images[1, :, 4:8, 8:12] / 255
    expected = corner.mean((1, 2)) if baseline is MeanColour else corner.flatten()
    torch.testing.assert_close(features[1, 1, 2], expected)
    together = image_features(encoder, [images])
    torch.testing.assert_close(together, features.mean((1, 2)))
    torch.testing.assert_close(image_features(encoder, images.split(1)), together)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="13 x 8 pixels"):
        patch_features(MeanColour(4), torch.zeros(1, 3, 8, 13, dtype=torch.uint8))
    with pytest.raises(ValueError, match="patch_size is 0"):
        MeanColour(0)
