"""Linear probing: a linear layer trained on frozen features.

    train heads, one per learning rate, on most of the training images      only with several rates
        choose the rate whose head is the best on the held-out ones
    train one head on all training images, then test it

The test set never chooses anything. (DINO's and iBOT's code report the best epoch, and iBOT's the best rate, on it.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.schedules import cosine_factor
from selfpatch.core.types import Encoder
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.classification.dataset import (
    CropValues,
    LabelledImages,
    check_crop,
    hold_out,
    open_splits,
    split_sizes,
)
from selfpatch.evaluation.classification.degenerate import check_classes
from selfpatch.evaluation.classification.linear.config import LinearConfig
from selfpatch.evaluation.classification.linear.features import (
    CachedFeatures,
    CentreCrops,
    FrozenFeatures,
    RandomCropFeatures,
    TrainingFeatures,
)
from selfpatch.evaluation.classification.linear.heads import LinearHeads
from selfpatch.evaluation.classification.metrics import top_hits, trained_result
from selfpatch.evaluation.degenerate import check_images
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import NO_OUTPUT, Cell, Output, Result
from selfpatch.evaluation.sharding import share_of_batch
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.models.features import evaluating


def evaluate(encoder: Encoder, data: str | Path, config: LinearConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure the accuracy of a linear layer on frozen features, on the test set and on as many training images.

    `registry.Evaluate` explains the arguments. The encoder is neither trained nor left in another mode.

    Raises:
        ValueError: data or settings do not fit, a training image cannot be read, or the folder holds another training.
    """
    check_crop(encoder, config)
    train, test = open_splits(Path(data).expanduser(), config.limit, config.labels, config.seed)
    features = FrozenFeatures(encoder, blocks=config.blocks, mean_patch=config.mean_patch, precision=config.precision)
    batch_size = min(config.batch_size, len(train))
    config = replace(config, batch_size=batch_size, blocks=features.blocks, mean_patch=features.mean_patch)
    settings = config.recorded() | {"held_out": config.held_out if len(config.lrs) > 1 else None}
    crops = CentreCrops(features, config, output.progress)
    trained_on = (
        [len(train)] if len(config.lrs) == 1 else [len(train), len(hold_out(train, config.held_out, config.seed)[0])]
    )
    for num_images in trained_on:  # refused before the images are encoded
        share_of_batch(min(batch_size, num_images))
    output.announce(_workload(features, train, test, config, settings | {"data": str(data)}))
    with evaluating(encoder):
        source = (RandomCropFeatures if config.crops == "random" else CachedFeatures)(train, crops)
        learned = {**settings, "train": train.fingerprint, "network": encoder_identity(encoder)}
        del learned["limit"]  # told by the fingerprint, so that trainings of versions without the setting go on
        training = _HeadTraining(source, features, len(train.classes), config, learned, output)
        rows = training.compare_lrs(train) if len(config.lrs) > 1 else []
        lr = float(max(rows, key=lambda row: row["held-out top-1"])["lr"]) if rows else config.lrs[0]
        positions = np.arange(len(train))
        heads = training.train(positions, [lr], "final")
        encoded, truth, names = crops.encode(test, "test images")
        check_classes(train, test)
        check_images(encoded[:, 0])
        tested = CropValues(_hits(heads, source.standardised(encoded[:, 0]), truth)[0], truth, names)
        train_hits = _hits(heads, *source.centre(evenly_spread(positions, len(test))))[0]
    settings |= {"lr": lr, "data": str(data)}
    return trained_result(
        "linear", train, test, tested, train_hits, per_class=config.per_class, settings=settings, rows=rows
    )


def _workload(
    features: FrozenFeatures,
    train: LabelledImages,
    test: LabelledImages,
    config: LinearConfig,
    settings: Mapping[str, Any],
) -> Workload:
    """Return the workload of encoding, and of training the last head."""
    device, size = features.encoder.device, (len(features.encoder.mean), config.crop, config.crop)
    heads = _make_heads(features.dim, len(train.classes), config.lrs[:1], config.seed).to(device)
    steps = config.epochs * (len(train) // config.batch_size)

    def loss(images: int) -> Tensor:
        encoded = (
            features(torch.zeros(images, *size)) if config.crops == "random" else torch.zeros(images, features.dim)
        )
        return heads.loss(encoded, torch.zeros(images, dtype=torch.int64))

    training = Training(heads, _optimizer(heads), loss, config.batch_size, steps)
    notes = ("The heads that choose a learning rate are not in the estimate.",) if len(config.lrs) > 1 else ()
    encoded = len(test) + len(train) * (2 if config.crops != "random" else 0)
    shape = (config.encode_batch, *size)
    return Workload(settings, split_sizes(train, test), features, shape, encoded, training, notes)


def _make_heads(dim: int, num_classes: int, rates: Sequence[float], seed: int) -> LinearHeads:
    return LinearHeads(dim, num_classes, rates, seed=seed).train()


def _optimizer(heads: LinearHeads) -> torch.optim.Optimizer:
    return torch.optim.SGD(heads.parameters(), lr=1.0, momentum=0.9)


@dataclass(frozen=True)
class _HeadTraining:
    """Training of heads on any of the images, at any rates."""

    source: TrainingFeatures
    features: FrozenFeatures
    num_classes: int
    config: LinearConfig
    learned: Mapping[str, Any]
    """Values that decide the weights; a checkpoint of other ones is refused."""
    output: Output

    def compare_lrs(self, train: LabelledImages) -> list[dict[str, Cell]]:
        """Return one row per learning rate: its accuracy on training images that were held out."""
        kept, held = hold_out(train, self.config.held_out, self.config.seed)
        heads = self.train(kept, self.config.lrs, "choosing")
        top1 = _hits(heads, *self.source.centre(held))[..., 0].float().mean(1).tolist()
        return [{"lr": lr, "held-out top-1": value} for lr, value in zip(self.config.lrs, top1, strict=True)]

    def train(self, positions: np.ndarray, lrs: Sequence[float], part: str) -> LinearHeads:
        """Train one head per rate on some of the images; the checkpoint lies in the folder `part`."""
        config, folder = self.config, self.output.folder
        batch_size = min(config.batch_size, len(positions))
        rates = [lr * batch_size / 256 for lr in lrs]
        heads = _make_heads(self.features.dim, self.num_classes, rates, config.seed)
        heads.to(self.features.encoder.device)
        steps_per_epoch = len(positions) // batch_size
        factor = cosine_factor(config.epochs)  # constant within an epoch, as DINO's
        fit(
            heads,
            lambda batch: heads.loss(*self.source.encode(batch)),
            self.source.batches(positions, batch_size=batch_size, seed=config.seed),
            _optimizer(heads),
            TrainingPlan(config.epochs * steps_per_epoch, lambda step: factor(step // steps_per_epoch), config.seed),
            settings={**self.learned, "rates": list(lrs), "images": len(positions), "part": part},
            output=replace(self.output, folder=None if folder is None else folder / part),
        )
        return heads.eval()


@torch.no_grad()
def _hits(heads: LinearHeads, features: Tensor, labels: Tensor) -> Tensor:
    """Return the [R, n, 2] `top_hits` of each head, on the CPU."""
    device = heads.weight.device
    parts = []
    for block, truth in zip(features.split(1024), labels.split(1024), strict=True):
        logits = heads(block.to(device)).transpose(0, 1)  # [R, b, K]
        parts.append(torch.stack([top_hits(of_head, truth.to(device)) for of_head in logits]).cpu())
    return torch.cat(parts, dim=1)
