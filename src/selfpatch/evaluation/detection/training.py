"""Training of Mask R-CNN around a copy of the backbone."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.detection.augmentation import Target, draw, render
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.pyramid import InnerMaps, LastMap, Pyramid
from selfpatch.evaluation.finetuning import layer_groups, trainable_copy
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Output
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

Sample = tuple[Tensor, Target]


def build_network(encoder: Encoder, num_classes: int, config: DetectionConfig) -> MaskRCNN:
    """Return Mask R-CNN on a copy of an encoder's backbone, on the encoder's device.

    Raises:
        ValueError: the encoder has no backbone to train, or the backbone does not fit the pyramid.
    """
    kind = type(encoder).__name__
    if not isinstance(encoder, BranchEncoder):
        raise ValueError(f"detection fine-tunes the network, and a {kind} has none; give a ViT, a Swin or a ResNet")
    channels = encoder.backbone.config.in_channels
    if channels != 3:
        raise ValueError(f"detection reads RGB images, but the network takes {channels} channels; give weights for 3")
    if config.blocks is not None and config.pyramid == "last-map":
        raise ValueError("blocks are for pyramid inner-maps; the simple pyramid takes the last map, leave them out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = trainable_copy(encoder.backbone, drop_path=config.drop_path)
        pyramid: Pyramid
        if config.pyramid == "last-map":
            pyramid = LastMap(backbone, width=config.width)
        else:
            pyramid = InnerMaps(backbone, width=config.width, blocks=config.blocks)
        network = MaskRCNN(pyramid, num_classes, config)
    return network.to(encoder.device)


def train(
    network: MaskRCNN, encoder: Encoder, split: Split, config: DetectionConfig, settings: dict[str, Any], output: Output
) -> None:
    """Train the network in place, and leave it in evaluation mode; `settings` go to `fit`.

    The encoder's mean and standard deviation normalise the images.
    """

    def loss(batch: list[Sample]) -> Tensor:
        images = [normalise(image.to(encoder.device), encoder.mean, encoder.std) for image, _ in batch]
        targets = [_on_device(target, encoder.device) for _, target in batch]
        return torch.stack(list(network.losses(images, targets).values())).sum()

    batches = Batches(
        len(split.images),
        partial(_load, split, config),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        collate=list,
    )
    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    rates = {"lr": config.scaled_lr, "layer_decay": config.layer_decay, "weight_decay": config.weight_decay}
    optimizer = torch.optim.AdamW(layer_groups(network, network.pyramid.backbone, **rates), lr=config.scaled_lr)
    plan = TrainingPlan(steps, partial(config.lr_factor, num_steps=steps), config.seed, config.clip, config.precision)
    fit(network.train(), loss, batches, optimizer, plan, settings=settings, output=output)
    network.eval()


def _load(split: Split, config: DetectionConfig, index: int, rng: np.random.Generator) -> Sample:
    """Return an augmented sample; a function of the module, so that it can be sent to loader processes."""
    annotated = split.images[index]
    return render(annotated.read(), annotated, draw(annotated.width, annotated.height, config, rng))


def _on_device(target: Target, device: torch.device) -> Target:
    boxes, labels, masks = (target[name].to(device) for name in ("boxes", "labels", "masks"))
    return {"boxes": boxes, "labels": labels, "masks": masks}
