"""Logits of whole images and windows, and the classes of whole images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.segmentation.inference import classes_at, load_normalised, predict_sliding


def bright(images: Tensor) -> Tensor:
    """[1, 3, H, W] -> [1, 2, H / 4, W / 4]: a network of patches of four pixels."""
    pooled = F.avg_pool2d(images[:, :1], 4)
    return torch.cat([pooled, 1 - pooled], 1)


def test_sliding_averages_windows_as_the_loop_does() -> None:
    image = torch.rand(1, 3, 21, 34)
    total, count = torch.zeros(1, 2, 21, 34), torch.zeros(21, 34)
    for top in (0, 5, 9):  # 10 would pass the edge
        for left in (0, 5, 10, 15, 20, 22):
            window = image[..., top : top + 12, left : left + 12]
            total[..., top : top + 12, left : left + 12] += F.interpolate(bright(window), (12, 12), mode="bilinear")
            count[top : top + 12, left : left + 12] += 1
    torch.testing.assert_close(predict_sliding(bright, image, 12, 5, 2), total / count)


def test_sliding_sees_nothing_but_windows_of_its_size() -> None:
    seen = []

    def spy(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return bright(images)

    for height, width in ((1, 1), (3, 300), (8, 8), (9, 8)):
        assert predict_sliding(spy, torch.rand(1, 3, height, width), 8, 8, 2).shape == (1, 2, height, width)
    assert set(seen) == {(1, 3, 8, 8)}
    with pytest.raises(ValueError, match="leave gaps"):
        predict_sliding(bright, torch.rand(1, 3, 8, 8), 8, 9, 2)


@pytest.mark.parametrize("size", [(77, 50), (5, 9), (1, 1), (300, 3)])
@pytest.mark.parametrize("max_logits", [1, 3000, 2**26])
def test_classes_in_strips_equal_those_of_the_resized_logits(size: tuple[int, int], max_logits: int) -> None:
    logits = torch.randn(1, 9, 13, 17)
    expected = F.interpolate(logits, size, mode="bilinear")[0].argmax(0)
    assert (classes_at(logits, size, max_logits=max_logits) == expected).float().mean() > 0.999


def test_a_loaded_image_is_bounded_on_both_sides_and_normalised() -> None:
    encoder = MeanColour(8)
    assert load_normalised(encoder, Image.new("RGB", (3000, 40)), 32).shape == (1, 3, 2, 128)
    loaded = load_normalised(encoder, Image.new("RGB", (80, 60), (255, 0, 0)), 30)
    assert loaded.shape == (1, 3, 30, 40)
    mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
    torch.testing.assert_close(loaded[0, :, 0, 0], (torch.tensor([1.0, 0.0, 0.0]) - mean) / std)
