"""Images of another shape or type than a network takes are refused in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.labelled_images import tiny_encoder


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"images are torch.float32 \[3, 32, 32\]; give a batch of normalised images, float32"),
        (torch.zeros(2, 1, 32, 32), r"images are torch.float32 \[2, 1, 32, 32\]; .* float32 \[B, 3, H, W\]"),
        (torch.zeros(2, 32, 32, 3), r"\[2, 32, 32, 3\]; give a batch"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"images are torch.uint8 .*; give a batch of normalised"),
        (torch.zeros(2, 3, 32, 32, device="meta"), "images are on meta, and the network on cpu; move them there"),
        (torch.zeros(2, 3, 33, 32), "does not divide the image side 33"),
        (torch.zeros(2, 3, 0, 32), "does not divide the image side 0"),
        (np.zeros((2, 3, 32, 32), np.float32), "images are a ndarray; give a tensor"),
        (None, "images are a NoneType; give a tensor"),
    ],
)
def test_other_images_are_refused(images: Any, message: str) -> None:
    encoder = tiny_encoder("vit")
    calls = [encoder.patches, encoder.image, lambda x: encoder.image_tokens(x, 1)]
    for call in calls:
        with pytest.raises(ValueError, match=message) as refused:
            call(images)
        assert "\n" not in str(refused.value)


def test_no_images_have_no_features() -> None:
    assert tiny_encoder("vit").patches(torch.zeros(0, 3, 32, 32)).shape[0] == 0


def test_a_call_has_gradients() -> None:
    encoder = tiny_encoder("vit").train()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert features.patches.shape[:2] == features.cls.shape == (2, encoder.dim)
    (features.patches.square().mean() + features.cls.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters() if p.requires_grad)
    encoder.eval()
    assert not encoder.patches(images).requires_grad
    torch.testing.assert_close(encoder(images).patches, encoder.patches(images), rtol=0, atol=0)
    torch.testing.assert_close(encoder(images).cls, encoder.image(images), rtol=0, atol=0)


@pytest.mark.filterwarnings("error")
def test_pixels_in_place_of_normalised_images_are_noticed_once() -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = tiny_encoder("vit")
    with pytest.warns(UserWarning, match=r"look like pixels; normalise them, e.g. by encoder.transform\(images\)"):
        encoder.patches(pixels)
    encoder.patches(pixels)
    normalised = tiny_encoder("vit")
    normalised.patches(normalised.transform(pixels))
    tiny_encoder("vit").patches(torch.zeros(1, 3, 32, 32))  # the image of position debiasing
