"""Linear segmentation: one 1x1 convolution on frozen patch features."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from selfpatch.core.distributed import all_reduce_mean, world_size
from selfpatch.core.schedules import Factor, one_cycle_factor, polynomial_factor
from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.augmentation import (
    SquareCrop,
    TrainCrop,
    dummy_batch,
    training_batches,
)
from selfpatch.evaluation.segmentation.config import LinearSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet
from selfpatch.evaluation.segmentation.inference import FittedMethod, image_predictor
from selfpatch.evaluation.segmentation.patches import PatchView, fitted_patches
from selfpatch.evaluation.segmentation.pixel_loss import pixel_loss
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.models.features import patch_features
from selfpatch.models.finite_features import checked_features

SLIDE = 2 / 3
"""Distance of test windows over their side (341 pixels for 512)."""


class LinearHead(nn.Module):
    """1x1 convolution from D features to C classes, optionally after dropout and a batch norm.

    Dropout sets whole channels of an image to 0. The seed is of the weights.
    """

    def __init__(self, dim: int, num_classes: int, *, batch_norm: bool, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.norm = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.classify = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B, C, h, w] of patch features [B, h, w, D]."""
        return self.classify(self.norm(self.dropout(features.movedim(-1, 1))))


def fit_linear(
    encoder: Encoder, train: SegmentationSet, config: LinearSegmentationConfig, output: Output
) -> FittedMethod:
    """Train a linear head on the encoder's features; a checkpoint of the same training is continued."""
    patch = encoder.patch_size
    if config.crop < patch:
        raise ValueError(f"crop is {config.crop} pixels for patches of {patch}; use {patch} or more")
    config = replace(config, crop=config.crop // patch * patch)
    if config.batch_norm and config.crop == patch and config.batch_size == 1:
        raise ValueError(
            f"crop is {config.crop} pixels, one patch, and a batch has one image, but a batch norm needs more than one "
            f"value; use a crop of {2 * patch} or more, or set batch_norm to False"
        )
    scaled = TrainCrop(config.crop, antialias=config.antialias)
    crop = scaled if config.augmentation == "scale_crop" else SquareCrop(config.crop)
    batches = training_batches(train, crop, config)
    config = in_steps(config, batches.steps_per_epoch)
    assert config.steps is not None  # `in_steps` has filled it in
    head = LinearHead(
        encoder.dim, len(train.classes), batch_norm=config.batch_norm, seed=config.seed, dropout=config.dropout
    )
    head.to(encoder.device).train()
    frozen = dense_encoder(encoder, config)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return segmentation_loss(head(patch_features(frozen, images)), labels.to(encoder.device), config.mask_side)

    learned = config.learned()
    if output.folder is not None:  # else hashing would read all labels for nothing
        learned |= {"training_data": train.fingerprint(), "network": encoder_identity(encoder)}
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(head.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.AdamW(head.parameters(), config.lr, weight_decay=config.weight_decay)
    plan = TrainingPlan(config.steps, learning_rate_factor(config), seed=config.seed, clip=config.clip)

    def dummy_loss(num_images: int) -> Tensor:
        images, labels = dummy_batch(num_images, config.crop)
        return segmentation_loss(head(patch_features(frozen, images)), labels, config.mask_side)

    sizes = {"training images": len(train), "classes": len(train.classes)}
    training = Training(head, optimizer, dummy_loss, config.batch_size, config.steps)
    output.announce(Workload(config.recorded(), sizes, frozen.patches, (1, 3, config.crop, config.crop), 0, training))
    fit(head, loss, batches, optimizer, plan, settings=learned, output=output)
    return _fitted(frozen, head.eval(), config, len(train.classes))


def in_steps(config: LinearSegmentationConfig, steps_per_epoch: int) -> LinearSegmentationConfig:
    """Return the settings with epochs converted to steps, the warm-up cut to a tenth of them, and a schedule."""
    steps = config.steps or (config.epochs or 0) * steps_per_epoch
    epochs = config.epochs if config.steps is None else None
    schedule = config.schedule or ("step" if config.optimizer == "sgd" else "polynomial")
    return replace(config, steps=steps, epochs=epochs, warmup=min(config.warmup, steps // 10), schedule=schedule)


def learning_rate_factor(config: LinearSegmentationConfig) -> Factor:
    """Return the schedule that settings name, once `in_steps` has completed them."""
    assert config.steps is not None
    if config.schedule == "step":
        return step_decay(config.steps)
    factor = one_cycle_factor if config.schedule == "one_cycle" else polynomial_factor
    return factor(config.steps, warmup=config.warmup)


def step_decay(steps: int) -> Factor:
    """Return a factor that is a tenth for the last fifth of the steps: Leopart's drop after epoch 20 of 25."""
    return lambda step: 1.0 if step < round(0.8 * steps) else 0.1


def segmentation_loss(logits: Tensor, labels: Tensor, mask_side: int | None) -> Tensor:
    """Return the mean cross-entropy over the labelled pixels of bilinearly enlarged logits; 0 if all are void.

    Logits are [B, C, h, w], labels int64 [B, S, S] with IGNORE, reduced first (nearest) if there is a `mask_side`. The
    mean over processes is that of the global batch.
    """
    if mask_side is not None:
        rows = torch.arange(mask_side, device=labels.device) * labels.shape[-1] // mask_side
        labels = labels[:, rows[:, None], rows]
    num_labelled = all_reduce_mean((labels != IGNORE).sum().float()).clamp_min(1 / world_size())
    height, width = labels.shape[-2:]
    return pixel_loss(logits, labels, (height, width)) / num_labelled


def _fitted(encoder: Encoder, head: LinearHead, config: LinearSegmentationConfig, num_classes: int) -> FittedMethod:
    """Return the trained head as a method that segments images by `config.test`."""
    if config.test == "slide":

        def window_logits(window: Tensor) -> Tensor:
            return head(checked_features(encoder.patches(window), window).float().movedim(1, -1))

        stride = max(1, int(SLIDE * config.crop))
        predict = image_predictor(
            window_logits,
            encoder,
            num_classes,
            short=config.crop,
            size=config.crop,
            stride=stride,
            antialias=config.antialias,
        )
        return FittedMethod(predict, config)

    @torch.no_grad()
    def scores(patches: Tensor) -> Tensor:
        return head(patches[None, None])[0, :, 0].T  # [n, C]

    view = PatchView(config.crop, config.test, config.mask_side if config.test == "square" else None)
    return fitted_patches(encoder, view, scores, config)
