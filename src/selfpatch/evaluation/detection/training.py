"""Training Mask R-CNN: the network around a copy of the backbone, the steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.detection.augmentation import Target, draw, render
from selfpatch.evaluation.detection.config import Preset
from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.pyramid import InnerMaps, LastMap, Pyramid
from selfpatch.evaluation.finetuning import layer_groups, trainable_copy
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Progress
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

Sample = tuple[Tensor, Target]


def build_network(
    encoder: Encoder, num_classes: int, how: Preset, *, blocks: Sequence[int] | None = None, seed: int = 0
) -> MaskRCNN:
    """Mask R-CNN on a copy of an encoder's backbone, on the encoder's device.

    Raises:
        ValueError: the encoder has no backbone to train, or it does not fit the pyramid.
    """
    if not isinstance(encoder, BranchEncoder):
        raise ValueError(
            f"detection trains the network along, and a {type(encoder).__name__} has none; give weights of a ViT, a "
            "Swin or a ResNet"
        )
    if encoder.backbone.config.in_channels != 3:
        raise ValueError(
            f"detection reads RGB images, but the network takes {encoder.backbone.config.in_channels} channels; give "
            "weights for 3"
        )
    if blocks is not None and how.pyramid == "last-map":
        raise ValueError("blocks are for pyramid inner-maps; the simple pyramid takes the last map, leave them out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = trainable_copy(encoder.backbone, drop_path=how.drop_path)
        pyramid: Pyramid
        if how.pyramid == "last-map":
            pyramid = LastMap(backbone, width=how.width)
        else:
            pyramid = InnerMaps(backbone, width=how.width, blocks=blocks)
        network = MaskRCNN(
            pyramid,
            num_classes,
            heads=how.heads,
            anchor_scale=how.anchor_scale,
            proposals=how.proposals,
            rois=how.rois,
            canvas=how.canvas,
        )
    return network.to(encoder.device)


def train(
    network: MaskRCNN,
    encoder: Encoder,
    split: Split,
    how: Preset,
    *,
    autocast: torch.dtype | None,
    seed: int,
    workers: int,
    settings: dict[str, Any],
    out: Path | None,
    progress: Progress | None,
) -> None:
    """Leaves the network trained, in evaluation mode."""

    def loss(batch: list[Sample]) -> Tensor:
        images = [normalise(image.to(encoder.device), encoder.mean, encoder.std) for image, _ in batch]
        targets = [_moved(target, encoder.device) for _, target in batch]
        return torch.stack(list(network.losses(images, targets).values())).sum()

    load = partial(_load, split, how)
    batches = Batches(len(split.images), load, batch_size=how.batch_size, seed=seed, workers=workers, collate=_as_list)
    steps = max(1, round(how.epochs * batches.steps_per_epoch))
    groups = layer_groups(
        network, network.pyramid.backbone, lr=how.rate(), layer_decay=how.layer_decay, weight_decay=how.weight_decay
    )
    optimizer = torch.optim.AdamW(groups, lr=how.rate())
    precision: Literal["float32", "bf16"] = "float32" if autocast is None else "bf16"
    fitting = TrainingPlan(steps, partial(how.factor, steps=steps), seed=seed, clip=how.clip, precision=precision)
    fit(network.train(), loss, batches, optimizer, fitting, settings=settings, out=out, progress=progress)
    network.eval()


def _load(split: Split, how: Preset, number: int, rng: np.random.Generator) -> Sample:
    """At the level of the module, so that a loader process can be handed it wherever processes are not forked."""
    annotated = split.images[number]
    placement = draw(how.augmentation, annotated.width, annotated.height, how.short_sides, how.long_side, rng)
    return render(annotated.read(), annotated, placement)


def _as_list(samples: list[Sample]) -> list[Sample]:
    return samples


def _moved(target: Target, device: torch.device) -> Target:
    boxes, labels, masks = (target[name].to(device) for name in ("boxes", "labels", "masks"))
    return {"boxes": boxes, "labels": labels, "masks": masks}
