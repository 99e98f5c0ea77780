"""What the linear layer sees: frozen features of random crops, made anew at each step, or of plain ones, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as tvf

from selfpatch.core.types import Encoder, Tokens
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.multichannel import Raster
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.classification.dataset import LabelledImages, Precision, centre_crops, collate
from selfpatch.evaluation.probe_training import StepBatches
from selfpatch.evaluation.result import Progress
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder, image_token
from selfpatch.models.pooling import PositivePool
from selfpatch.ops.images import normalise

WIDE = 768
"""From this width on, DINO takes the last block and the mean patch; below, the last four blocks."""


class FrozenFeatures:
    """Image tokens of the last blocks, and perhaps the mean patch of the last one, side by side.

    Args:
        blocks: of a ViT; None: 4 where it is narrower than 768, else 1. Every other network has one image feature.
        mean_patch: None: where a ViT is 768 wide or more.
        precision: that the network runs in; bf16: under autocast.

    Raises:
        ValueError: there are not so many blocks.
    """

    def __init__(
        self, encoder: Encoder, *, blocks: int | None, mean_patch: bool | None, precision: Precision = "float32"
    ) -> None:
        vit = encoder.backbone if isinstance(encoder, BranchEncoder) and isinstance(encoder.backbone, ViT) else None
        if blocks is None:
            blocks = min(4, vit.num_layers) if vit is not None and vit.dim < WIDE else 1
        if not 1 <= blocks <= (1 if vit is None else vit.num_layers):
            have = "one image feature" if vit is None else f"{vit.num_layers} blocks"
            raise ValueError(f"the image tokens of {blocks} blocks are asked for; this network has {have}")
        self.encoder, self.blocks, self._vit, self.precision = encoder, blocks, vit, precision
        self.mean_patch = (vit is not None and vit.dim >= WIDE) if mean_patch is None else mean_patch
        self.dim = encoder.dim * (blocks + self.mean_patch)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as `normalise` takes them -> [B, F] float32 on the encoder's device."""
        device = self.encoder.device
        batch = normalise(images.to(device, non_blocking=True), self.encoder.mean, self.encoder.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            parts = self._parts(batch)
        return torch.cat([part.float() for part in parts], dim=1)

    def _parts(self, batch: Tensor) -> list[Tensor]:
        if self._vit is None:
            patches = [self.encoder.patches(batch).mean((2, 3))] if self.mean_patch else []
            return [self.encoder.image(batch), *patches]
        assert isinstance(self.encoder, BranchEncoder)
        pool = self.encoder.pool
        tokens = self._vit.last_tokens(batch, self.blocks)
        patches = [_normed_patches(tokens[-1], pool).mean((1, 2))] if self.mean_patch else []
        return [*(image_token(t, pool) for t in tokens), *patches]


def _normed_patches(tokens: Tokens, pool: nn.Module | None) -> Tensor:
    """[B, h, w, D]; the norm of a positive pool stands in for the trunk's."""
    return pool.norm(tokens.raw_patches) if isinstance(pool, PositivePool) else tokens.patches


class Source(Protocol):
    """Training images as features."""

    def batches(self, numbers: np.ndarray, *, batch_size: int, seed: int) -> StepBatches:
        """Batches of some of the images, for `seen`."""
        ...

    def seen(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Features [B, F] and labels [B] of a batch, on the encoder's device."""
        ...

    def plain(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features [n, F] and labels [n] of centre crops, on the CPU."""
        ...

    def prepared(self, features: Tensor) -> Tensor:
        """Features [n, F] of other images, as the linear layer is to see them."""
        ...


@dataclass(frozen=True)
class _RandomCrops:
    """A training image as DINO's protocol sees it: random resized crop and flip, bilinear as torchvision's default."""

    images: LabelledImages
    recipe: ViewRecipe
    channels: int

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        picture, label = self.images.read(number, self.channels), int(self.images.labels[number])
        p, size = draw_view(self.recipe, picture.size, rng), self.recipe.size
        if isinstance(picture, Raster):
            return render(picture, size, p), label
        view = tvf.resized_crop(picture, p.top, p.left, p.height, p.width, [size, size])
        return tvf.pil_to_tensor(tvf.hflip(view) if p.flip else view), label


@dataclass(frozen=True)
class CentreCrops:
    """How plain crops are cut and encoded."""

    features: FrozenFeatures
    resize: int
    crop: int
    encode_batch: int
    progress: Progress | None

    def encode(self, images: LabelledImages, what: str, *, flips: bool = False) -> tuple[Tensor, Tensor, list[str]]:
        """Features [n, V, F] of the images that can be read, their labels [n] and their names, on the CPU; V is 2 with
        the mirror images, else 1."""
        parts, labels, names = [], [], []
        channels = len(self.features.encoder.mean)
        for batch in centre_crops(
            images,
            resize=self.resize,
            crop=self.crop,
            channels=channels,
            batch_size=self.encode_batch,
            what=what,
            progress=self.progress,
        ):
            views = [batch.images, batch.images.flip(-1)] if flips else [batch.images]
            parts.append(torch.stack([self.features(view).cpu() for view in views], dim=1))
            labels.append(batch.labels)
            names += batch.names
        return torch.cat(parts), torch.cat(labels), names


class FreshCrops:
    """Random resized crops, encoded anew at each step."""

    def __init__(self, images: LabelledImages, plain: CentreCrops, *, workers: int) -> None:
        self._images, self._plain, self._workers = images, plain, workers
        recipe = ViewRecipe(plain.crop, scale=(0.08, 1.0), flip=0.5)
        self._load = _RandomCrops(images, recipe, len(plain.features.encoder.mean))

    def batches(self, numbers: np.ndarray, *, batch_size: int, seed: int) -> Batches[tuple[Tensor, int]]:
        load = _Some(self._load, numbers)
        return Batches(len(numbers), load, batch_size=batch_size, seed=seed, workers=self._workers, collate=collate)

    def seen(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self._plain.features(images), labels.to(self._plain.features.encoder.device)

    def plain(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        features, labels, _ = self._plain.encode(self._images.only(numbers), "training images")
        return features[:, 0], labels

    def prepared(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class _Some:
    """Some of the samples, counted from 0."""

    load: _RandomCrops
    numbers: np.ndarray

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        return self.load(int(self.numbers[number]), rng)


class CachedFeatures:
    """Centre crops and their mirror images, encoded once; a step sees either of the two.

    Features are standardised by their mean and deviation over the training images, as the batch norm of MAE's linear
    protocol does (arXiv 2111.06377, appendix A.1): whatever their scale, the same learning rates serve.
    """

    def __init__(self, images: LabelledImages, plain: CentreCrops) -> None:
        raw, self._labels, names = plain.encode(images, "training images", flips=True)  # [n, 2, F]
        variance, self._mean = torch.var_mean(raw, dim=(0, 1), correction=0)
        self._scale = torch.rsqrt(variance + 1e-6)
        self._features = raw.sub_(self._mean).mul_(self._scale)
        self._device = plain.features.encoder.device
        if len(names) < len(images):
            read = set(names)
            lost = next(name for name in map(images.name, range(len(images))) if name not in read)
            lacking = f"{len(images) - len(names)} training images cannot be read, e.g. {lost}"
            raise ValueError(f"{lacking}; remove them from {images.index.root}")

    def batches(self, numbers: np.ndarray, *, batch_size: int, seed: int) -> _CachedBatches:
        return _CachedBatches(self._features, self._labels, numbers, batch_size, seed)

    def seen(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, labels = batch
        return features.to(self._device), labels.to(self._device)

    def plain(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(numbers)
        return self._features[rows, 0], self._labels[rows]

    def prepared(self, features: Tensor) -> Tensor:
        return (features - self._mean) * self._scale


@dataclass(frozen=True)
class _CachedBatches:
    """As `Batches`, a whole epoch drawn at once: rows of a table need no loader."""

    features: Tensor
    labels: Tensor
    numbers: np.ndarray
    batch_size: int
    seed: int

    def steps(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        per_epoch = len(self.numbers) // self.batch_size
        of_epoch = -1
        for step in range(first, last):
            epoch, batch = divmod(step, per_epoch)
            if epoch != of_epoch:
                rng, of_epoch = generator(self.seed, epoch, 0, 0), epoch
                order = torch.from_numpy(rng.permutation(self.numbers))
                flipped = torch.from_numpy(rng.integers(2, size=len(order)))
            some = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield self.features[order[some], flipped[some]], self.labels[order[some]]
