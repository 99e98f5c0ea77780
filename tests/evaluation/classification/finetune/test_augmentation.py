"""Augmentation of fine-tuning: RandAugment, erasing, mixup and cutmix."""

from __future__ import annotations

import random
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from selfpatch.data.augment.multicrop import ViewRecipe, generator
from selfpatch.evaluation.classification.dataset import open_splits
from selfpatch.evaluation.classification.finetune.augmentation import (
    OPERATIONS,
    AugmentedImages,
    Mixing,
    _operations,
    rand_augment,
)
from tests.helpers.labelled_images import coloured_folder

RECIPE = ViewRecipe(16, scale=(0.3, 1.0), flip=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)])
def test_mixed_targets_sum_to_one_and_match_the_image(mixup: float, cutmix: float) -> None:
    """Images whose pixels are the number of their class: the mean pixel is the mean class of the target."""
    mixing = Mixing(4, mixup=mixup, cutmix=cutmix)
    torch.manual_seed(0)
    shares = set()
    for _ in range(8):
        labels = torch.randperm(4)
        images = labels.view(4, 1, 1, 1).expand(4, 3, 8, 8).float()
        mixed, targets = mixing(images, labels)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0))
        shares.add(round(float(targets.amax()), 4))
    assert (len(shares) > 3) == bool(mixup or cutmix)


def test_augmentation_belongs_to_the_sample_and_leaves_torch_alone(folder: Path) -> None:
    train, _ = open_splits(folder)
    load = AugmentedImages(train, RECIPE, (0.5,) * 3, (0.2,) * 3, magnitude=9, erasing=0.5)

    def view(number: int, epoch: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        image, label = load(number, generator(0, epoch, number, 0))
        assert torch.equal(before, torch.get_rng_state())
        assert label == train.labels[number]
        return image

    views = [view(3, epoch, seed=epoch) for epoch in range(6)]
    assert all(torch.equal(v, view(3, epoch, seed=100)) for epoch, v in enumerate(views))
    assert len({v.sum().item() for v in views}) == 6


def test_the_operations_are_those_of_timm() -> None:
    """`rand-m9-mstd0.5-inc1`, chosen uniformly with replacement; each is applied half of the time."""
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    ours = _operations(9.0, (124, 116, 104))
    assert [op.name for op in ours] == [op.name for op in theirs.ops]
    assert {op.prob for op in ours} == {op.prob for op in theirs.ops} == {0.5}
    assert {op.magnitude for op in ours} == {op.magnitude for op in theirs.ops} == {9}
    assert {op.magnitude_std for op in ours} == {op.magnitude_std for op in theirs.ops} == {0.5}
    assert ours[0].kwargs == {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
    assert theirs.num_layers == 2
    assert theirs.choice_weights is None


def test_rand_augment_draws_from_the_samples_generator_alone() -> None:
    image = (torch.arange(3 * 16 * 16).view(3, 16, 16) % 251).to(torch.uint8)
    random.seed(1)
    before = random.getstate()
    first = [rand_augment(image, 9, np.random.default_rng(i), fill=[9, 8, 7]) for i in range(6)]
    assert random.getstate() == before
    random.seed(2)
    again = [rand_augment(image, 9, np.random.default_rng(i), fill=[9, 8, 7]) for i in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({int(view.sum()) for view in first}) > 3
    assert all(view.dtype == torch.uint8 and view.shape == image.shape for view in first)


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_every_operation_takes_every_magnitude(number: int) -> None:
    """The magnitude 10, which draws reach, leaves no bits to posterize: the image is black, as in older Pillow."""
    picture = Image.fromarray((np.arange(3 * 16 * 16).reshape(16, 16, 3) % 251).astype(np.uint8))
    for magnitude in (0.0, 5.0, 10.0):
        operation = copy(_operations(magnitude, (1, 2, 3))[number])
        for _ in range(30):
            changed = operation(picture)
            assert (changed.size, changed.mode) == (picture.size, "RGB")
    if operation.name == "PosterizeIncreasing":
        operation.prob, operation.magnitude_std = 1.0, 0.0
        assert np.asarray(operation(picture)).max() == 0


def test_half_of_the_operations_are_applied_and_stronger_ones_change_more() -> None:
    image = (torch.arange(3 * 16 * 16).view(3, 16, 16) % 251).to(torch.uint8)

    def change(magnitude: float) -> list[float]:
        torch.manual_seed(0)
        rngs = (np.random.default_rng(i) for i in range(60))
        return [float((rand_augment(image, magnitude, r, fill=[0] * 3) - image.float()).abs().mean()) for r in rngs]

    weak, strong = change(1.0), change(9.0)
    assert 8 <= sum(c == 0 for c in strong) <= 30, "a quarter is left alone, and some operations change nothing"
    assert sum(weak) < sum(strong)


def test_erasing_puts_noise_into_a_rectangle(folder: Path) -> None:
    train, _ = open_splits(folder)
    plain = AugmentedImages(train, RECIPE, (0.5,) * 3, (0.2,) * 3, magnitude=0, erasing=0.0)
    erased = replace(plain, erasing=1.0)
    before, after = (load(0, generator(0, 0, 0, 0))[0] for load in (plain, erased))
    changed = (before != after).all(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all(), "a full rectangle"
    assert 0.01 < changed.float().mean() < 0.4
