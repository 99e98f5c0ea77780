"""Training of Mask R-CNN around a copy of the backbone."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfpatch.core.seeds import seeded_step
from selfpatch.core.types import Encoder
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.detection.augmentation import Target, draw, render
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.dry_run import NOTES, loss_without_sampling
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.pyramid import InnerMaps, LastMap, Pyramid
from selfpatch.evaluation.encoders import require_rgb
from selfpatch.evaluation.finetuning import layer_groups, require_network, trainable_copy
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.models.backbones.resnet import ResNet
from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.ops.images import normalise

Sample = tuple[Tensor, Target, int]
"""Image, its objects, and the seed of the boxes that are drawn for it."""
MOMENTUM = 0.9


def build_network(encoder: Encoder, num_classes: int, config: DetectionConfig) -> MaskRCNN:
    """Return Mask R-CNN on a copy of an encoder's backbone, on the encoder's device.

    Raises:
        ValueError: the encoder has no backbone to train, or the backbone does not fit the pyramid.
    """
    encoder = require_network(encoder)
    require_rgb(encoder, "detect")
    if config.blocks is not None and config.pyramid == "last-map":
        raise ValueError("blocks are for pyramid inner-maps; the simple pyramid takes the last map, leave them out")
    if config.pyramid_norm != "none" and config.pyramid == "last-map":
        raise ValueError("pyramid_norm is for pyramid inner-maps; the simple pyramid has LayerNorms, leave it out")
    if config.box_norm != "none" and config.heads == "linear":
        raise ValueError(f"box_norm is {config.box_norm}, but linear heads have no convolutions; use --box-norm none")
    if config.train_batch_norms and not isinstance(encoder.backbone, ResNet):
        family = encoder.backbone.config.family
        raise ValueError(
            f"train_batch_norms is for a ResNet, and the network is a {family}; use --no-train-batch-norms"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = trainable_copy(encoder.backbone, drop_path=config.drop_path)
        pyramid: Pyramid
        if config.pyramid == "last-map":
            pyramid = LastMap(backbone, width=config.width)
        else:
            pyramid = InnerMaps(
                backbone,
                width=config.width,
                blocks=config.blocks,
                norm=config.pyramid_norm,
                train_batch_norms=config.train_batch_norms,
            )
        network = MaskRCNN(pyramid, num_classes, config)
    return network.to(encoder.device)


def train(
    network: MaskRCNN, encoder: Encoder, split: Split, config: DetectionConfig, settings: dict[str, Any], output: Output
) -> None:
    """Train the network in place, and leave it in evaluation mode; `settings` go to `fit`.

    The encoder's mean and standard deviation normalise the images.
    """

    def loss(batch: list[Sample]) -> Tensor:
        images = [normalise(image.to(encoder.device), encoder.mean, encoder.std) for image, _, _ in batch]
        targets = [_on_device(target, encoder.device) for _, target, _ in batch]
        return torch.stack(list(network.losses(images, targets, [seed for _, _, seed in batch]).values())).sum()

    batches = Batches(
        len(split.images),
        partial(_load, split, config),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        collate=list,
    )
    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    optimizer = build_optimizer(network, config)
    plan = TrainingPlan(steps, partial(config.lr_factor, num_steps=steps), config.seed, config.clip, config.precision)
    training = Training(
        network, optimizer, partial(loss_without_sampling, network, config), config.batch_size, steps, config.precision
    )
    output.announce(Workload(config.recorded(), {"training images": len(split.images)}, training=training, notes=NOTES))
    fit(network.train(), loss, batches, optimizer, plan, settings=settings, output=output)
    autocast = torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16")
    with torch.no_grad(), seeded_step(config.seed, steps, encoder.device), autocast:  # drop path draws
        average_statistics(network, loss, batches.steps(steps, steps + config.precise_bn))
    network.eval()


def average_statistics(network: nn.Module, forward: Callable[[Any], Any], batches: Iterable[Any]) -> None:
    """Set the statistics of batch norms to their mean over batches, as Detectron2's PRECISE_BN does; keep them if none.

    `forward` runs the network, in training mode, on a batch. A norm that a batch does not reach, as the mask head's
    without an object, has the mean over the others.
    """
    norms = [part for part in network.modules() if isinstance(part, BatchNorm)]
    tracked = {norm: norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None}
    momenta = {norm: norm.momentum for norm in tracked}
    begun_at = {norm: int(num_batches) for norm, num_batches in tracked.items()}
    for batch in batches:
        forward(batch)
        for norm, num_batches in tracked.items():
            norm.momentum = 1 / (int(num_batches) - begun_at[norm] + 1)
            norm.update()  # counts no batch without a row on any process
    for norm, momentum in momenta.items():
        norm.momentum = momentum


def build_optimizer(network: MaskRCNN, config: DetectionConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a network, with the learning rate and the weight decay of each layer."""
    groups = layer_groups(
        network,
        network.pyramid.backbone,
        lr=config.scaled_lr,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        weight_decay_on=config.weight_decay_on,
    )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.scaled_lr, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=config.scaled_lr)


def _load(split: Split, config: DetectionConfig, index: int, rng: np.random.Generator) -> Sample:
    """Return an augmented sample; a function of the module, so that it can be sent to loader processes."""
    annotated = split.images[index]
    image, target = render(annotated.read(), annotated, draw(annotated.width, annotated.height, config, rng))
    return image, target, int(rng.integers(2**62))


def _on_device(target: Target, device: torch.device) -> Target:
    boxes, labels, masks = (target[name].to(device) for name in ("boxes", "labels", "masks"))
    return {"boxes": boxes, "labels": labels, "masks": masks}
