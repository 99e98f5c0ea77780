"""Whole images as patches with shares of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.patches import PatchView, choose_patches, soft_labels


def test_rare_classes_are_remembered_first_and_void_never() -> None:
    labels = torch.zeros(20, 3)
    labels[:16, 0] = 1  # the frequent class
    labels[16:18, 1] = 1  # the rare one
    draws = torch.full((20,), 0.5)
    assert choose_patches(labels, 2, draws).tolist() == [16, 17]
    assert choose_patches(labels, 99, draws).tolist() == [*range(18)]


def test_soft_labels_are_shares_of_the_labelled_pixels() -> None:
    label = np.array([[0, 0, 1, IGNORE], [0, 2, IGNORE, IGNORE]])
    expected = torch.tensor([[[3 / 4, 0, 1 / 4], [0, 1, 0]]])
    torch.testing.assert_close(soft_labels(label, (1, 2), 2, 3), expected)
    assert soft_labels(np.full((4, 4), IGNORE), (2, 2), 2, 3).sum() == 0


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (7, 100)])
def test_images_of_any_shape_become_patches(size: tuple[int, int]) -> None:
    image = LazyImage(Path("red.png"), size[1], size[0], lambda: Image.new("RGB", size, (255, 0, 0)))
    features = PatchView(32).features(MeanColour(8), image)
    assert tuple(features.shape[:2]) == PatchView(32).grid(image.height, image.width, 8)
    assert max(features.shape[:2]) <= 4 * 32 / 8
    torch.testing.assert_close(features[0, 0], torch.tensor([1.0, 0.0, 0.0]))
