"""Images as patches: their features, their shares of classes, and a bounded sample of labelled ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import gather_rows
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.degenerate import check_degenerate, check_patches
from selfpatch.evaluation.feature_cache import cached
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.segmentation.augmentation import (
    Crop,
    fitted_size,
    resize_antialiased,
    resize_bilinear,
    resize_nearest,
)
from selfpatch.evaluation.segmentation.base_config import PatchConfig, SegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet
from selfpatch.evaluation.segmentation.inference import MAX_LOGITS, FittedMethod, classes_at
from selfpatch.evaluation.sharding import share_of
from selfpatch.models.features import patch_features

_CROP_STREAM = 1
ONE_CLASS_LEARNED = (
    "the labels to learn from have one class only, which is predicted everywhere; use more or other training images"
)


@dataclass(frozen=True)
class PatchView:
    """View of an image as patches, and the size at which it is scored; see `PatchConfig` for the fields."""

    resolution: int
    shape: Literal["whole", "square"] = "whole"
    mask_side: int | None = None
    std: Sequence[float] | None = None
    """Standard deviation that images are normalised by; the encoder's own if None."""

    @classmethod
    def of(cls, config: PatchConfig, std: Sequence[float] | None = None) -> "PatchView":
        """Return the view that settings describe."""
        return cls(config.resolution, config.shape, config.mask_side, std)

    def grid(self, height: int, width: int, patch_size: int) -> tuple[int, int]:
        """Return (h, w) in patches of an image.

        Raises:
            ValueError: a square image would have no patch.
        """
        if self.shape == "square":
            return (self.side(patch_size) // patch_size,) * 2
        height, width = fitted_size(height, width, self.resolution)
        return max(1, round(height / patch_size)), max(1, round(width / patch_size))

    def side(self, patch_size: int) -> int:
        """Return the side of a square image in pixels; ValueError if it has no patch."""
        if self.resolution < patch_size:
            raise ValueError(f"resolution is {self.resolution} pixels for patches of {patch_size}; use more")
        return self.resolution // patch_size * patch_size

    def features(self, encoder: Encoder, image: LazyImage) -> Tensor:
        """Return the features [h, w, D] of an image, float32 on the encoder's device; `grid` gives h and w."""
        h, w = self.grid(image.height, image.width, encoder.patch_size)
        height, width = h * encoder.patch_size, w * encoder.patch_size

        def encode() -> Tensor:
            if self.shape == "square":
                pixels = resize_antialiased(image.rgb, (height, width))
            else:
                pixels = resize_bilinear(image.pixels, (height, width))
            batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            return patch_features(encoder, batch, std=self.std)[0]

        return cached(encoder, image, (self.shape, h, w, self.std), encode)

    def scored_size(self, height: int, width: int, patch_size: int) -> tuple[int, int]:
        """Return the (height, width) at which an image of this size is scored."""
        return (height, width) if self.shape == "whole" else (self.mask_side or self.side(patch_size),) * 2

    def reduced_labels(self, label: np.ndarray, patch_size: int) -> np.ndarray:
        """Return labels [H, W] at the size at which they are scored, by way of that of the image (nearest)."""
        if self.shape == "whole":
            return label
        square = resize_nearest(label, (self.side(patch_size),) * 2)
        return square if self.mask_side is None else resize_nearest(square, (self.mask_side,) * 2)


def fitted_patches(
    encoder: Encoder,
    view: PatchView,
    scores_of: Callable[[Tensor], Tensor],
    config: SegmentationConfig,
    *,
    max_logits: int = MAX_LOGITS,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> FittedMethod:
    """Return a method that segments an image by the scores [n, C] that `scores_of` gives its patches [n, D]."""

    def predict(image: LazyImage) -> Tensor:
        features = view.features(encoder, image)
        scores = scores_of(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        size = view.scored_size(image.height, image.width, encoder.patch_size)
        return classes_at(scores.permute(2, 0, 1)[None], size, max_logits=max_logits)

    reduce_labels = partial(view.reduced_labels, patch_size=encoder.patch_size)
    return FittedMethod(predict, config, facts or {}, reduce_labels, notes)


def soft_labels(label: np.ndarray, grid: tuple[int, int], patch_size: int, num_classes: int) -> Tensor:
    """Return the share of each class among the labelled pixels of each patch, as float32 [h, w, C].

    The sum over C is 1, or 0 where all pixels of the patch are void. Labels, int64 [H, W] with IGNORE, are resized to
    it.
    """
    h, w = grid
    pixels = resize_nearest(label, (h * patch_size, w * patch_size))
    patch = np.arange(h).repeat(patch_size)[:, None] * w + np.arange(w).repeat(patch_size)
    labelled = pixels != IGNORE
    cells = patch[labelled] * num_classes + pixels[labelled]
    counts = np.bincount(cells, minlength=h * w * num_classes).reshape(h, w, num_classes)
    return torch.from_numpy((counts / np.maximum(counts.sum(-1, keepdims=True), 1)).astype(np.float32))


def commonness(labels: Tensor) -> Tensor:
    """Return for each patch the sum over its classes of the number of patches that hold the class, [N].

    Labels are [N, C] shares of the classes of one image's patches.
    """
    present = (labels > 0).float()
    return present @ present.sum(0)


def choose_patches(labels: Tensor, count: int, draws: Tensor) -> Tensor:
    """Choose labelled patches of one image, rare classes first.

        score[patch] = draw[patch] * commonness[patch]
        the `count` lowest scores are kept; patches without a label never are

    Labels are [N, C] shares of the classes, draws [N] uniform in [0, 1). The indices [n] int64 are in ascending order.
    """
    score = draws * commonness(labels)
    score[labels.sum(1) == 0] = torch.inf
    chosen = score.argsort(stable=True)[: min(count, int((score < torch.inf).sum()))]
    return chosen.sort().values


def labelled_patches(
    encoder: Encoder,
    images: SegmentationSet,
    view: PatchView,
    config: PatchConfig,
    progress: Progress,
    *,
    unit: bool,
    passes: int = 1,
    crop: Crop | None = None,
) -> tuple[Tensor, Tensor]:
    """Return features [M, D] and shares of classes [M, C] of at most `memory_patches` patches, equally many per image.

    Each of several processes encodes its share, and all receive all patches.

    Args:
        encoder: the network.
        images: the images to learn from.
        view: how images become patches.
        config: settings; `memory_patches` and `seed` are read.
        progress: called after each image.
        unit: scale features to a norm of 1.
        passes: number of times that each image is seen; the patches are divided among them.
        crop: random crop, drawn anew in each pass, that is seen in place of the image; its side is the view's.

    Raises:
        ValueError: fewer patches than images, or no patch has a label.
    """
    patch, num_classes = encoder.patch_size, len(images.classes)
    share = share_of(len(images))
    sizes = [h * w for h, w in (view.grid(*images.size(i), patch) for i in share)]
    budget = max(sizes, default=1)
    if config.memory_patches is not None:
        budget = config.memory_patches // (len(images) * passes)
    if budget < 1:
        raise ValueError(
            f"memory_patches is {config.memory_patches} for {counted(len(images), 'training image')}"
            f"{f' in {passes} passes' if passes > 1 else ''}; use one per image or more"
        )
    capacity = passes * sum(min(budget, size) for size in sizes)
    features = torch.empty(capacity, encoder.dim, device=encoder.device)
    labels = torch.empty(capacity, num_classes, device=encoder.device)
    filled = 0
    for number in range(passes):
        for i, image, label in images.labelled_share("memory", progress):
            if crop is None:
                of_image = view.features(encoder, image)
            else:
                pixels, classes = crop(image.rgb, label, generator(config.seed, number, i, _CROP_STREAM))
                of_image, label = patch_features(encoder, pixels[None], std=view.std)[0], classes.numpy()
            if number == 0:
                check_patches(of_image, images.names[i])
            h, w, _ = of_image.shape
            soft = soft_labels(label, (h, w), patch, num_classes).flatten(0, 1)
            draws = torch.from_numpy(generator(config.seed, number, i, 0).random(h * w))
            chosen = choose_patches(soft, budget, draws.float())
            rows = slice(filled, filled + len(chosen))
            of_chosen = of_image.flatten(0, 1)[chosen.to(of_image.device)]
            features[rows] = F.normalize(of_chosen, dim=1) if unit else of_chosen
            labels[rows] = soft[chosen].to(labels.device)
            filled += len(chosen)
    # Patches without a label leave rows empty. On one process these are views, no copies.
    features, labels = gather_rows([features[:filled]]), gather_rows([labels[:filled]])
    if not len(features):
        raise ValueError(f"all labels of {images.labels[0].parent} are void; there is nothing to learn from")
    check_degenerate(ONE_CLASS_LEARNED, (labels > 0).any(0).sum() == 1)
    return features, labels
