"""Linear segmentation: one 1x1 convolution on frozen patch features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as tvf

from selfpatch.core.schedules import Factor, polynomial_factor
from selfpatch.core.types import Encoder
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Progress, encoder_identity
from selfpatch.evaluation.segmentation.augmentation import SquareCrop, TrainCrop, resize_nearest, training_batches
from selfpatch.evaluation.segmentation.config import LinearSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet
from selfpatch.evaluation.segmentation.harness import FittedMethod, Predict
from selfpatch.evaluation.segmentation.inference import classes_at, load_normalised, predict_sliding
from selfpatch.evaluation.segmentation.patches import whole_features
from selfpatch.models.features import patch_features

SLIDE = 2 / 3
"""Distance of test windows over their side (341 pixels for 512)."""


class LinearHead(nn.Module):
    """1x1 convolution, optionally after a batch norm.

    Args:
        dim: width D of the features.
        num_classes: number of classes C.
        batch_norm: normalise the features first.
        seed: seed of the initial weights.
    """

    def __init__(self, dim: int, num_classes: int, *, batch_norm: bool, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.classify = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B, C, h, w] of patch features [B, h, w, D]."""
        return self.classify(self.norm(features.movedim(-1, 1)))


def fit_linear(
    encoder: Encoder,
    train: SegmentationSet,
    config: LinearSegmentationConfig,
    out: Path | None,
    progress: Progress | None,
) -> FittedMethod:
    """Train a linear head on the encoder's features; a checkpoint in `out` of the same training is continued."""
    config = replace(config, crop=_whole_patches(config.crop, encoder.patch_size))
    crop = TrainCrop(config.crop) if config.augmentation == "scale_crop" else SquareCrop(config.crop)
    batches = training_batches(train, crop, config)
    config = in_steps(config, batches.steps_per_epoch)
    head = LinearHead(encoder.dim, len(train.classes), batch_norm=config.batch_norm, seed=config.seed)
    head.to(encoder.device).train()

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return segmentation_loss(head(patch_features(encoder, images)), labels.to(encoder.device), config.mask_side)

    learned = config.learned()
    if out is not None:  # else hashing would read all labels for nothing
        learned |= {"training_data": train.fingerprint(), "network": encoder_identity(encoder)}
    optimizer, factor = make_optimizer(head, config)
    plan = TrainingPlan(config.steps or 0, factor, seed=config.seed)
    fit(head, loss, batches, optimizer, plan, settings=learned, out=out, progress=progress)
    predict, reduce_labels = _tester(encoder, head.eval(), config, len(train.classes))
    return FittedMethod(predict, config, reduce_labels=reduce_labels)


def _whole_patches(crop: int, patch_size: int) -> int:
    """Return the largest multiple of the patch size up to `crop`."""
    if crop < patch_size:
        raise ValueError(f"crop is {crop} pixels for patches of {patch_size}; use {patch_size} or more")
    return crop // patch_size * patch_size


def in_steps(config: LinearSegmentationConfig, steps_per_epoch: int) -> LinearSegmentationConfig:
    """Return the settings with epochs converted to steps, and the warm-up cut to a tenth of them."""
    steps = config.steps or (config.epochs or 0) * steps_per_epoch
    epochs = config.epochs if config.steps is None else None
    return replace(config, steps=steps, epochs=epochs, warmup=min(config.warmup, steps // 10))


def make_optimizer(head: LinearHead, config: LinearSegmentationConfig) -> tuple[torch.optim.Optimizer, Factor]:
    """Return the optimizer and the factor on its learning rate."""
    assert config.steps is not None  # `in_steps` has filled it in
    parameters, lr, weight_decay = head.parameters(), config.lr, config.weight_decay
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
        return sgd, step_decay(config.steps)
    adamw = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    return adamw, polynomial_factor(config.steps, warmup=config.warmup)


def step_decay(steps: int) -> Factor:
    """Return a factor that is a tenth for the last fifth of the steps: Leopart's drop after epoch 20 of 25."""
    return lambda step: 1.0 if step < round(0.8 * steps) else 0.1


def segmentation_loss(logits: Tensor, labels: Tensor, mask_side: int | None) -> Tensor:
    """Return the mean cross-entropy over the labelled pixels of bilinearly enlarged logits; 0 if all are void.

    Args:
        logits: [B, C, h, w].
        labels: int64 [B, S, S] with IGNORE.
        mask_side: side that the labels are reduced to first (nearest); if None, S.
    """
    if mask_side is not None:
        rows = torch.arange(mask_side, device=labels.device) * labels.shape[-1] // mask_side
        labels = labels[:, rows[:, None], rows]
    enlarged = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    summed = F.cross_entropy(enlarged, labels, ignore_index=IGNORE, reduction="sum")
    return summed / (labels != IGNORE).sum().clamp_min(1)


def _tester(
    encoder: Encoder, head: LinearHead, config: LinearSegmentationConfig, num_classes: int
) -> tuple[Predict, Callable[[np.ndarray], np.ndarray] | None]:
    """Return the function that segments an image, and the one that reduces its labels before they are compared."""
    crop, side = config.crop, config.mask_side or config.crop

    @torch.no_grad()
    def square(image: Image.Image) -> Tensor:
        small = image.resize((crop, crop), Image.Resampling.BILINEAR)
        logits = head(patch_features(encoder, tvf.pil_to_tensor(small)[None]))
        return classes_at(logits, (side, side))

    def reduce_labels(label: np.ndarray) -> np.ndarray:
        return resize_nearest(resize_nearest(label, (crop, crop)), (side, side))

    @torch.no_grad()
    def whole(image: Image.Image) -> Tensor:
        return classes_at(head(whole_features(encoder, image, crop)[None]), (image.height, image.width))

    @torch.no_grad()
    def slide(image: Image.Image) -> Tensor:
        normalised = load_normalised(encoder, image, crop)
        stride = max(1, int(SLIDE * crop))
        logits = predict_sliding(
            lambda window: head(encoder.patches(window).float().movedim(1, -1)), normalised, crop, stride, num_classes
        )
        return classes_at(logits, (image.height, image.width))

    if config.test == "square":
        return square, reduce_labels
    return (slide if config.test == "slide" else whole), None
