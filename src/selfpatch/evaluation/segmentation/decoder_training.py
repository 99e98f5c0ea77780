"""Segmentation with a decoder, Semantic FPN or UPerNet, and the backbone fine-tuned below it.

for each step:
    logits = decoder(maps of four blocks of the backbone), enlarged to the crop
    cross-entropy of every labelled pixel -> AdamW on decoder and backbone
mIoU, aAcc, mAcc of the test images at their own size
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selfpatch.core.schedules import polynomial_factor
from selfpatch.core.transfer import to_device
from selfpatch.core.types import Encoder
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.feature_pyramid import QUARTERS, THIRDS, default_maps
from selfpatch.evaluation.finetuning import layer_groups, require_network, trainable_copy
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import NO_OUTPUT, Output
from selfpatch.evaluation.segmentation.augmentation import TrainCrop, dummy_batch, training_batches
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.decoder_config import DecoderConfig
from selfpatch.evaluation.segmentation.decoders import Norm
from selfpatch.evaluation.segmentation.inference import FittedMethod, image_predictor
from selfpatch.evaluation.segmentation.segmenter import Segmenter, Taps
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise


def fit_decoder(encoder: Encoder, train: SegmentationSet, config: DecoderConfig, output: Output) -> FittedMethod:
    """Train a decoder and a copy of the backbone; a checkpoint of the same training is continued.

    Raises:
        ValueError: the encoder is no network of this package, or settings or data do not fit.
    """
    encoder = require_network(encoder)
    config = resolve(config, encoder)
    batches = training_batches(train, TrainCrop(config.crop, short_side=config.short_side), config)
    num_classes = len(train.classes)
    network = build_segmenter(encoder, num_classes, config)
    learned: dict[str, Any] = {}
    if output.folder is not None:
        data = {"training_data": train.fingerprint(), "network": encoder_identity(encoder)}
        learned = {**config.learned(), "norm": _norm(config), **data}
    train_segmenter(network, encoder, batches, config, settings=learned, output=output)
    short = config.short_side or config.crop
    predict = image_predictor(network.eval(), encoder, num_classes, short=short, size=config.crop, stride=config.stride)
    return FittedMethod(predict, config, {"norm": _norm(config)})


def resolve(config: DecoderConfig, encoder: BranchEncoder) -> DecoderConfig:
    """Return the settings with what is derived filled in: short side, stride, blocks, channels and warm-up."""
    width = encoder.backbone.dim if isinstance(encoder.backbone, ViT) else 512
    stride = max(1, config.crop * 2 // 3) if config.test == "slide" else None
    return replace(
        config,
        short_side=config.short_side or config.crop,
        stride=config.stride or stride,
        warmup=min(config.warmup, config.steps // 10),
        channels=config.channels or width,
        blocks=config.blocks or default_maps(encoder.backbone, QUARTERS if config.method == "fpn" else THIRDS),
    )


def build_segmenter(encoder: BranchEncoder, num_classes: int, config: DecoderConfig) -> Segmenter:
    """Build the network to train, on the encoder's device; its first weights depend on the seed alone.

    `config` comes from `resolve`. Raise ValueError if the backbone lacks a block.
    """
    assert config.blocks is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # Positions are resized once and trained so, as the released code does it, instead of in every step.
        grid = math.ceil(config.crop / encoder.patch_size)
        backbone = trainable_copy(encoder.backbone, drop_path=config.drop_path, grid=grid)
        if max(config.blocks) > len(backbone.map_dims):
            raise ValueError(f"blocks are {list(config.blocks)}; use four of 1 to {len(backbone.map_dims)}")
        taps = Taps(backbone, config.blocks, normed=config.normed)
        network = Segmenter(taps, num_classes, config, norm=_norm(config))
    return network.to(encoder.device).to(memory_format=torch.channels_last)


def _norm(config: DecoderConfig) -> Norm:
    """Batch norm needs more than one value per channel, which the coarsest pooling of a single image is."""
    return "batch" if config.batch_size > 1 else "group"


def train_segmenter(
    network: Segmenter,
    encoder: BranchEncoder,
    batches: Batches,
    config: DecoderConfig,
    *,
    settings: Mapping[str, Any],
    output: Output = NO_OUTPUT,
) -> list[float]:
    """Train in place and return the losses; arguments as for `probe_training.fit`."""
    groups = layer_groups(
        network,
        network.taps.backbone,
        lr=config.lr,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        weight_decay_on=config.weight_decay_on,
    )
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=encoder.device.type in ("cpu", "cuda"))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = (to_device(part, encoder.device) for part in batch)
        return network.loss(normalise(pixels, encoder.mean, encoder.std), labels)

    factor = polynomial_factor(config.steps, warmup=config.warmup)
    plan = TrainingPlan(config.steps, factor, seed=config.seed, precision=config.precision)

    def dummy_loss(num_images: int) -> Tensor:
        return network.loss(*dummy_batch(num_images, config.crop))

    training = Training(network, optimizer, dummy_loss, config.batch_size, config.steps, config.precision)
    sizes = {"training images": batches.num_samples}
    output.announce(Workload(config.recorded(), sizes, network, (1, 3, config.crop, config.crop), 0, training))
    return fit(network.train(), loss, batches, optimizer, plan, settings=settings, output=output)
