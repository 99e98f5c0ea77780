"""Frozen features: which ones, how they are standardised and batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.evaluation.classification.dataset import open_splits
from selfpatch.evaluation.classification.linear.config import LinearConfig
from selfpatch.evaluation.classification.linear.features import (
    CachedFeatures,
    CentreCrops,
    FrozenFeatures,
    RandomCropFeatures,
    _CachedBatches,
)
from selfpatch.evaluation.encoders import MeanColour
from tests.helpers.labelled_images import coloured_folder, tiny_encoder

SMALL = LinearConfig(resize=16, crop=16, encode_batch=8, workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


def test_cached_features_are_standardised_by_the_training_images(folder: Path) -> None:
    train, test = open_splits(folder)
    crops = CentreCrops(FrozenFeatures(tiny_encoder("vit"), blocks=1, mean_patch=False), SMALL)
    source = CachedFeatures(train, crops)
    both = torch.stack([f for f, _ in source.batches(np.arange(24), batch_size=1, seed=0).steps(0, 24 * 40)])
    torch.testing.assert_close(both.mean((0, 1)), torch.zeros(16), atol=0.1, rtol=0)
    torch.testing.assert_close(both.std((0, 1)), torch.ones(16), atol=0.15, rtol=0)
    raw = crops.encode(train, "")[0][:, 0]
    torch.testing.assert_close(source.standardised(raw), source.centre(np.arange(24))[0])
    assert not torch.allclose(source.standardised(crops.encode(test, "")[0][:, 0]).mean(0), torch.zeros(16), atol=1e-4)


def test_random_crops_are_flipped_half_of_the_time(tmp_path: Path) -> None:
    """Images that are dark on the left."""
    root = coloured_folder(tmp_path, train=1, test=1)
    for path in (root / "train").rglob("*.png"):
        Image.fromarray(np.tile(np.arange(0, 240, 10, np.uint8)[None, :, None], (20, 1, 3))).save(path)
    crops = CentreCrops(FrozenFeatures(MeanColour(8), blocks=1, mean_patch=False), SMALL)
    source = RandomCropFeatures(open_splits(root)[0], crops)
    views = torch.cat([images for images, _ in source.batches(np.arange(3), batch_size=3, seed=0).steps(0, 20)]).float()
    flipped = (views[..., 0] > views[..., -1]).all((1, 2)).float().mean()
    assert 0.3 < flipped < 0.7


def test_batches_are_of_the_given_images_alone() -> None:
    kept = np.setdiff1d(np.arange(24), [3, 4, 17])
    source = _CachedBatches(torch.arange(24.0).view(24, 1, 1).expand(-1, 2, 1), torch.arange(24), kept, 6, 0)
    seen = {int(label) for _, labels in source.steps(0, 9) for label in labels}
    assert seen == set(kept.tolist())


def test_cached_batches_do_not_depend_on_where_one_begins() -> None:
    source = _CachedBatches(torch.randn(10, 2, 3), torch.arange(10), np.arange(10), 4, 7)
    whole, parts = list(source.steps(0, 6)), [*source.steps(0, 3), *source.steps(3, 6)]
    for (x, y), (part_x, part_y) in zip(whole, parts, strict=True):
        assert torch.equal(x, part_x)
        assert torch.equal(y, part_y)
    assert not torch.equal(whole[0][1], whole[2][1]), "each epoch has an order of its own"


@pytest.mark.parametrize("kind", ["vit", "vit+pool"])
def test_features_are_image_tokens_of_the_last_blocks_and_the_mean_patch(kind: str) -> None:
    encoder = tiny_encoder(kind)
    images = torch.rand(2, 3, 16, 16)
    features = FrozenFeatures(encoder, blocks=2, mean_patch=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.mean, encoder.std))
    batch = (images - mean) / std
    tokens = encoder.backbone(batch)
    patches = tokens.patches if encoder.pool is None else encoder.pool.norm(tokens.raw_patches)
    expected = torch.cat([encoder.image_tokens(batch, 2).flatten(1), patches.mean((1, 2))], dim=1)
    torch.testing.assert_close(features(images), expected)
    assert features.dim == expected.shape[1] == 48


def test_the_width_decides_which_features_are_taken() -> None:
    narrow = FrozenFeatures(tiny_encoder("vit"), blocks=None, mean_patch=None)
    assert (narrow.blocks, narrow.mean_patch) == (3, False)
    encoder = tiny_encoder("vit")
    encoder.backbone.dim = 768
    wide = FrozenFeatures(encoder, blocks=None, mean_patch=None)
    assert (wide.blocks, wide.mean_patch) == (1, True)
    with pytest.raises(ValueError, match="blocks is 4, but this network has 3 blocks"):
        FrozenFeatures(encoder, blocks=4, mean_patch=None)
    with pytest.raises(ValueError, match="blocks is 2, but this network has one image feature"):
        FrozenFeatures(tiny_encoder("swin"), blocks=2, mean_patch=None)
