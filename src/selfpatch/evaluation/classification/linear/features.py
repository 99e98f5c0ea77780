"""Frozen features that the linear layer sees: of random crops at every step, or of centre crops encoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.core.text import counted
from selfpatch.core.transfer import to_device
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.multichannel import Raster
from selfpatch.evaluation.batches import Batches, epochs_of
from selfpatch.evaluation.classification.dataset import CropValues, LabelledImages, collate, map_centre_crops
from selfpatch.evaluation.classification.linear.config import LinearConfig
from selfpatch.evaluation.classification.metrics import unreadable
from selfpatch.evaluation.config import Precision
from selfpatch.evaluation.feature_cache import cached
from selfpatch.evaluation.result import Progress, silent
from selfpatch.evaluation.sharding import share_of_batch
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder, image_token
from selfpatch.models.finite_features import checked_features
from selfpatch.models.pooling import PositivePool
from selfpatch.ops.images import normalise

WIDE = 768
"""Smallest width for which DINO takes the last block and the mean patch; narrower networks use four blocks."""


class FrozenFeatures:
    """Image tokens of the last blocks, optionally with the mean patch of the last one, side by side.

    Args:
        blocks: number of last ViT blocks; if None, 4 below a width of 768, else 1 (ViT only).
        mean_patch: append the mean patch; if None, only for a ViT of width 768 or more.
        precision: precision of the network; bf16 uses autocast.

    Raises:
        ValueError: the network has fewer blocks.
    """

    def __init__(
        self, encoder: Encoder, *, blocks: int | None, mean_patch: bool | None, precision: Precision = "float32"
    ) -> None:
        vit = encoder.backbone if isinstance(encoder, BranchEncoder) and isinstance(encoder.backbone, ViT) else None
        if blocks is None:
            blocks = min(4, vit.num_layers) if vit is not None and vit.dim < WIDE else 1
        if not 1 <= blocks <= (1 if vit is None else vit.num_layers):
            available = "one image feature" if vit is None else counted(vit.num_layers, "block")
            raise ValueError(f"blocks is {blocks}, but this network has {available}; use fewer")
        self.encoder, self.blocks, self._vit, self.precision = encoder, blocks, vit, precision
        self.mean_patch = (vit is not None and vit.dim >= WIDE) if mean_patch is None else mean_patch
        self.dim = encoder.dim * (blocks + self.mean_patch)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W], as `normalise` takes them, to [B, F] float32 on the encoder's device."""
        device = self.encoder.device
        batch = normalise(to_device(images, device), self.encoder.mean, self.encoder.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            parts = self._parts(batch)
            return checked_features(torch.cat([part.float() for part in parts], dim=1), batch)

    def _parts(self, batch: Tensor) -> list[Tensor]:
        if self._vit is None:
            patches = [self.encoder.patches(batch).mean((2, 3))] if self.mean_patch else []
            return [self.encoder.image(batch), *patches]
        assert isinstance(self.encoder, BranchEncoder)
        pool = self.encoder.pool
        tokens = self._vit.last_tokens(batch, self.blocks)
        parts = [image_token(of_block, pool) for of_block in tokens]
        if self.mean_patch:  # the norm of a positive pool replaces the trunk's
            last = pool.norm(tokens[-1].raw_patches) if isinstance(pool, PositivePool) else tokens[-1].patches
            parts.append(last.mean((1, 2)))
        return parts


@dataclass(frozen=True)
class CentreCrops:
    """Encoder of centre crops."""

    features: FrozenFeatures
    config: LinearConfig
    progress: Progress = silent

    def encode(self, images: LabelledImages, what: str, *, flips: bool = False) -> CropValues:
        """Return the features [n, V, F] of the readable images; V is 2 with mirror images, else 1."""

        def encode(crops: Tensor, _: Tensor) -> Tensor:
            views = [crops, crops.flip(-1)] if flips else [crops]
            return torch.stack([self._cached(view).cpu() for view in views], dim=1)

        return map_centre_crops(encode, images, self.config, len(self.features.encoder.mean), what, self.progress)

    def _cached(self, crops: Tensor) -> Tensor:
        """Return the features of crops, from the cache of a suite if they are there."""
        features = self.features
        settings = "image", features.blocks, features.mean_patch, features.precision
        return cached(features.encoder, crops.numpy(), settings, lambda: features(crops))


def _random_crop(
    images: LabelledImages, recipe: ViewRecipe, channels: int, i: int, rng: np.random.Generator
) -> tuple[Tensor, int]:
    """Load a training image as DINO's protocol sees it: a random box and flip, bilinear as torchvision's default."""
    picture, label = images.read(i, channels), int(images.labels[i])
    p = draw_view(recipe, picture.size, rng)
    if isinstance(picture, Raster):
        return render(picture, recipe.size, p), label
    view = tvf.resized_crop(picture, p.top, p.left, p.height, p.width, [*recipe.sides])
    return tvf.pil_to_tensor(tvf.hflip(view) if p.flip else view), label


class RandomCropFeatures:
    """Training images as features of random resized crops, encoded at every step."""

    def __init__(self, images: LabelledImages, crops: CentreCrops) -> None:
        self._images, self._crops = images, crops

    def batches(self, positions: np.ndarray, *, batch_size: int, seed: int) -> Batches:
        """Return batches of random crops and labels of some of the images, for `encode`."""
        config, channels = self._crops.config, len(self._crops.features.encoder.mean)
        recipe = ViewRecipe(config.crop, scale=(0.08, 1.0), flip=0.5)
        load = partial(_random_crop, self._images.subset(positions), recipe, channels)
        return Batches(len(positions), load, batch_size=batch_size, seed=seed, workers=config.workers, collate=collate)

    def encode(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features [B, F] and labels [B] of a batch, on the encoder's device."""
        images, labels = batch
        return self._crops.features(images), labels.to(self._crops.features.encoder.device)

    def centre(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the features [n, F] and labels [n] of centre crops, on the CPU."""
        features, labels, _ = self._crops.encode(self._images.subset(positions), "training images")
        return features[:, 0], labels

    def standardised(self, features: Tensor) -> Tensor:
        """Return features [n, F] of other images as the linear layer sees them: unchanged."""
        return features


class CachedFeatures:
    """Training images as features of centre crops and their mirror images, encoded once; a step sees one of the two.

    Features are standardised by their mean and deviation over the training images, as the batch norm of MAE's linear
    protocol does (arXiv 2111.06377, appendix A.1), so that the same learning rates fit features of any scale.
    """

    def __init__(self, images: LabelledImages, crops: CentreCrops) -> None:
        raw, self._labels, names = crops.encode(images, "training images", flips=True)  # [n, 2, F]
        variance, self._mean = torch.var_mean(raw, dim=(0, 1), correction=0)
        self._scale = torch.rsqrt(variance + 1e-6)
        self._features = raw.sub_(self._mean).mul_(self._scale)
        self._device = crops.features.encoder.device
        if missing := unreadable(images, names):
            raise ValueError(
                f"{counted(len(missing), 'training image')} cannot be read, e.g. {missing[0]}; remove them from the "
                "data"
            )

    def batches(self, positions: np.ndarray, *, batch_size: int, seed: int) -> "_CachedBatches":
        """Return batches of cached features and labels."""
        return _CachedBatches(self._features, self._labels, positions, batch_size, seed)

    def encode(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Move a batch to the encoder's device."""
        features, labels = batch
        return features.to(self._device), labels.to(self._device)

    def centre(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the cached features and labels of unflipped images."""
        rows = torch.from_numpy(positions)
        return self._features[rows, 0], self._labels[rows]

    def standardised(self, features: Tensor) -> Tensor:
        """Standardise by the training images."""
        return (features - self._mean) * self._scale


@dataclass(frozen=True)
class _CachedBatches:
    """Batches of cached features. As `Batches`, but the flips of a whole epoch are drawn at once, without a loader."""

    features: Tensor
    labels: Tensor
    positions: np.ndarray
    batch_size: int
    seed: int

    def steps(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        share = share_of_batch(self.batch_size)
        for epoch, batches in epochs_of(first, last, len(self.positions) // self.batch_size):
            rng = generator(self.seed, epoch, 0, 0)
            order = torch.from_numpy(rng.permutation(self.positions))
            flipped = torch.from_numpy(rng.integers(2, size=len(order)))
            for batch in batches:
                first_row = batch * self.batch_size
                rows = slice(first_row + share.start, first_row + share.stop)
                yield self.features[order[rows], flipped[rows]], self.labels[order[rows]]


TrainingFeatures = RandomCropFeatures | CachedFeatures
