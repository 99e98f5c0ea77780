"""The linear head, its loss, its crops and its presets."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from selfpatch.evaluation.segmentation.config import LinearSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.linear import LinearHead, in_steps, segmentation_loss, step_decay

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)


def test_loss_equals_the_plain_one_without_void() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    labels[0, :3] = IGNORE
    enlarged = F.interpolate(logits, (8, 8), mode="bilinear")
    torch.testing.assert_close(
        segmentation_loss(logits, labels, None), F.cross_entropy(enlarged, labels, ignore_index=IGNORE)
    )
    reduced = F.interpolate(labels[:, None].float(), (5, 5), mode="nearest")[:, 0].long()
    enlarged = F.interpolate(logits, (5, 5), mode="bilinear")
    torch.testing.assert_close(
        segmentation_loss(logits, labels, 5), F.cross_entropy(enlarged, reduced, ignore_index=IGNORE)
    )
    assert segmentation_loss(logits, torch.full_like(labels, IGNORE), None) == 0


def test_a_head_before_enlarging_equals_one_after_it() -> None:
    """Leopart's code enlarges the features; a linear map commutes with that."""
    head = LinearHead(6, 4, batch_norm=False, seed=0)
    features = torch.randn(1, 5, 5, 6)
    large = F.interpolate(features.movedim(-1, 1), (20, 20), mode="bilinear")
    after = head(large.movedim(1, -1))
    torch.testing.assert_close(F.interpolate(head(features), (20, 20), mode="bilinear"), after, rtol=1e-4, atol=1e-5)


def test_presets_are_the_published_ones() -> None:
    leopart, full = (LinearSegmentationConfig.from_settings({"preset": name}) for name in ("leopart", "full"))
    assert (leopart.crop, leopart.mask_side, leopart.optimizer, leopart.lr, leopart.epochs) == (
        448,
        100,
        "sgd",
        0.01,
        25,
    )
    assert (full.crop, full.steps, full.optimizer, full.lr, full.test) == (512, 40_000, "adamw", 1e-3, "slide")
    assert full.mask_side is None
    factor = step_decay(250)
    assert (factor(0), factor(199), factor(200), factor(249)) == (1, 1, 0.1, 0.1)


def test_epochs_become_steps_and_the_warm_up_is_a_tenth_at_most() -> None:
    leopart = in_steps(LinearSegmentationConfig(), 10)
    assert (leopart.steps, leopart.epochs, leopart.warmup) == (250, 25, 0)
    full = in_steps(LinearSegmentationConfig.from_settings({"preset": "full", "steps": 70}), 10)
    assert (full.steps, full.epochs, full.warmup) == (70, None, 7)
