"""The linear head, its loss, its crops and its presets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as tvf

from selfpatch.evaluation.segmentation.augmentation import TrainCrop, fitted_size
from selfpatch.evaluation.segmentation.config import LinearSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.linear import (
    LinearHead,
    in_steps,
    learning_rate_factor,
    segmentation_loss,
    step_decay,
)

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


def test_neco_is_leopart_with_its_batches() -> None:
    leopart, neco = (
        LinearSegmentationConfig.from_settings({"preset": name}).recorded() for name in ("leopart", "neco")
    )
    assert {name: value for name, value in neco.items() if value != leopart[name]} == {
        "preset": "neco",
        "batch_size": 128,
        "absent_as_zero": True,
    }


def test_dinov3_drops_channels_before_its_batch_norm_and_follows_its_schedule() -> None:
    config = LinearSegmentationConfig.from_settings({"preset": "dinov3"})
    assert (config.crop, config.steps, config.warmup, config.batch_size) == (512, 40_000, 1500, 16)
    assert (config.lr, config.weight_decay, config.clip, config.dropout) == (1e-3, 1e-3, 35, 0.1)
    assert (config.augmentation, config.antialias, config.mask_side, config.test) == ("scale_crop", True, None, "slide")
    factor = learning_rate_factor(in_steps(config, 1))
    assert [factor(step) for step in (1, 751, 20_001)] == pytest.approx([1e-6, 0.5 * (1 - 750 / 40_000), 0.5], abs=1e-4)
    torch.manual_seed(0)
    head, features = LinearHead(8, 3, batch_norm=True, seed=0, dropout=0.5), torch.randn(2, 4, 4, 8)
    dropped = head.dropout(torch.ones(2, 8, 4, 4))
    assert {*dropped.unique().tolist()} == {0.0, 2.0}
    assert all(len(channel.unique()) == 1 for channel in dropped.flatten(0, 1))
    standard = head.norm(features.movedim(-1, 1))
    head.eval()
    head.norm.train()  # statistics of the batch, without dropout
    torch.testing.assert_close(head(features), head.classify(standard))


def test_schedules_default_to_those_of_the_optimizer() -> None:
    for optimizer, schedule in (("sgd", "step"), ("adamw", "polynomial")):
        assert in_steps(LinearSegmentationConfig(optimizer=optimizer, steps=9), 1).schedule == schedule


@pytest.mark.parametrize("size", [(70, 41), (30, 90)])
def test_antialiased_crops_are_torchvisions(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    crop = TrainCrop(16, scale_range=(1, 1), max_share=1, flip=0, colour=False, antialias=True)
    found, _ = crop(image, np.zeros(size, np.int64), np.random.default_rng(1))
    whole = tvf.pil_to_tensor(tvf.resize(image, list(fitted_size(*size, 16))))
    rows, columns = (range(side - 15) for side in whole.shape[1:])
    assert any(torch.equal(found, whole[:, top : top + 16, left : left + 16]) for top in rows for left in columns)
