"""Linear segmentation: one 1x1 convolution on frozen patch features.

Presets: `leopart`, Ziegler and Asano (arXiv 2204.13101) and their released code; `full`, the linear protocol of DINOv2
(arXiv 2304.07193) on mmsegmentation; `small`, ours, for a minute or two on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as tvf

from selfpatch.core.schedules import polynomial_factor
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Progress, Provenance, Result, encoder_identity
from selfpatch.evaluation.segmentation.augmentation import TrainCrop, resize_nearest
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet
from selfpatch.evaluation.segmentation.inference import classes_at, fit_image, predict_sliding
from selfpatch.evaluation.segmentation.patches import EVERYTHING, LONG_OVER_SHORT, whole_features
from selfpatch.evaluation.segmentation.scoring import Predict, check_at_least, check_rates, open_splits, score_images
from selfpatch.models.features import patch_features
from selfpatch.ops.images import normalise

Test = Literal["square", "whole", "slide"]
SLIDE = 2 / 3
"""Of the window: how far the next one is (341 pixels for 512)."""


@dataclass(frozen=True)
class LinearProtocol:
    """How the head is trained and tested.

    Attributes:
        crop: side of the training images in pixels; the largest multiple of the patch size up to it is taken.
        augmentation: `resized_crop`: a box of 80 to 100 % of the image, made square, and a flip; `scale_crop`: see
            `augmentation.TrainCrop`.
        optimizer: `sgd` with momentum 0.9 and the rate divided by 10 after four fifths of the steps; `adamw` with a
            polynomial rate of power 1 after a warm-up.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: steps, with adamw alone; at most a tenth of all.
        batch_size: images a step.
        steps: of the optimizer; None: as many as `epochs` have.
        epochs: where steps is None.
        batch_norm: before the convolution.
        mask_side: that masks are reduced to (nearest) in training, and with `square` in testing; None: their own.
        test: `square`: the image squeezed to crop x crop pixels, scored at mask_side; `whole`: the image with a short
            side of crop; `slide`: the same, seen through windows of crop, 2/3 of it apart. The last two are scored at
            the image's own size.
    """

    crop: int
    augmentation: Literal["resized_crop", "scale_crop"]
    optimizer: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float
    batch_size: int
    steps: int | None
    epochs: int | None
    warmup: int
    batch_norm: bool
    mask_side: int | None
    test: Test


PRESETS: dict[str, LinearProtocol] = {
    "leopart": LinearProtocol(
        448, "resized_crop", "sgd", 0.01, 1e-4, 60, None, 25, 0, batch_norm=False, mask_side=100, test="square"
    ),
    "full": LinearProtocol(
        512, "scale_crop", "adamw", 1e-3, 1e-4, 16, 40_000, None, 1500, batch_norm=True, mask_side=None, test="slide"
    ),
    "small": LinearProtocol(
        160, "scale_crop", "adamw", 5e-3, 1e-4, 8, 120, None, 12, batch_norm=True, mask_side=40, test="whole"
    ),
}


class LinearHead(nn.Module):
    """Patch features [B, h, w, D] -> logits [B, C, h, w]."""

    def __init__(self, dim: int, num_classes: int, *, batch_norm: bool, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.classify = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.norm(features.movedim(-1, 1)))


def evaluate_linear(
    encoder: Encoder,
    data: str | Path,
    *,
    preset: str = "leopart",
    out: str | Path | None = None,
    kind: str | None = None,
    train_split: str = "train",
    test_split: str = "val",
    limit: int | None = None,
    workers: int = 0,
    seed: int = 0,
    max_pictures: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Result:
    """Linear segmentation; the settings are those of `segment.evaluate`, `changes` fields of `LinearProtocol`."""
    protocol = resolve(preset, changes, encoder.patch_size)
    train, test = open_splits(data, kind, train_split, test_split, limit)
    batches = Batches(len(train), _Samples(train, protocol), batch_size=protocol.batch_size, seed=seed, workers=workers)
    protocol = _in_steps(protocol, batches.steps_per_epoch)
    settings = {"method": "linear", "preset": preset, **asdict(protocol), "data": str(data), "kind": test.kind}
    settings |= {"train_split": train_split, "test_split": test_split, "seed": seed}
    settings |= {"train_images": len(train), "test_images": len(test)}
    head = LinearHead(encoder.dim, len(train.classes), batch_norm=protocol.batch_norm, seed=seed).to(encoder.device)
    learned = {} if out is None else _identity(encoder, train, protocol, seed)
    fit_head(head, encoder, batches, protocol, learned, seed, out, progress)
    predict, truth = _tester(encoder, head.eval(), protocol, len(test.classes))
    scored = score_images(test, predict, out=out, max_pictures=max_pictures, truth=truth, progress=progress)
    return scored.result(test.classes, settings, weights)


def resolve(preset: str, changes: Mapping[str, Any], patch_size: int) -> LinearProtocol:
    """The preset with what is changed about it, those of its values that are None left as they are.

    Raises:
        ValueError: there is no such preset, or a value makes no sense.
    """
    protocol = resolve_preset(PRESETS, preset, **changes)
    if protocol.crop < patch_size:
        raise ValueError(f"crop is {protocol.crop} pixels for patches of {patch_size}; use {patch_size} or more")
    if protocol.steps is not None and protocol.steps < 1:
        raise ValueError(f"steps is {protocol.steps}; use 1 or more")
    check_rates(protocol.lr, protocol.weight_decay)
    check_at_least(0, warmup=protocol.warmup)
    if protocol.optimizer == "sgd" and protocol.warmup:
        raise ValueError(f"warmup is {protocol.warmup}, and {preset} trains without; leave it out, or use preset full")
    if protocol.test not in get_args(Test):
        raise ValueError(f"test is {protocol.test!r}; use one of: {', '.join(get_args(Test))}")
    return replace(protocol, crop=protocol.crop // patch_size * patch_size)


def _in_steps(protocol: LinearProtocol, steps_per_epoch: int) -> LinearProtocol:
    """Epochs as steps, and the warm-up cut to a tenth of them."""
    steps = protocol.steps
    if steps is None:
        assert protocol.epochs is not None  # every preset has one of the two
        steps = protocol.epochs * steps_per_epoch
    epochs = protocol.epochs if protocol.steps is None else None
    return replace(protocol, steps=steps, epochs=epochs, warmup=min(protocol.warmup, steps // 10))


@dataclass(frozen=True)
class _Samples:
    """(number of the image, its random numbers) -> uint8 [3, S, S], int64 [S, S]; it travels to loader processes."""

    train: SegmentationSet
    protocol: LinearProtocol

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image, label = self.train.read(number)
        if self.protocol.augmentation == "scale_crop":
            return TrainCrop(self.protocol.crop)(image, label, rng)
        return resized_crop(image, label, self.protocol.crop, rng)


def resized_crop(image: Image.Image, label: np.ndarray, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A box of 80 to 100 % of the area made square (bilinear, antialiased), and a flip, as Leopart trains with.

    Returns:
        uint8 [3, size, size], int64 [size, size].
    """
    p = draw_view(ViewRecipe(size, scale=(0.8, 1.0), flip=0.5), image.size, rng)
    box = (p.left, p.top, p.left + p.width, p.top + p.height)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    classes = resize_nearest(label[box[1] : box[3], box[0] : box[2]], (size, size), EVERYTHING)
    if p.flip:
        return tvf.pil_to_tensor(tvf.hflip(view)), torch.from_numpy(classes[:, ::-1].copy())
    return tvf.pil_to_tensor(view), torch.from_numpy(classes)


def fit_head(
    head: LinearHead,
    encoder: Encoder,
    batches: Batches[tuple[Tensor, Tensor]],
    protocol: LinearProtocol,
    settings: Mapping[str, Any],
    seed: int,
    out: str | Path | None,
    progress: Progress | None,
) -> None:
    """Trains the head on the encoder's features; it goes on where an earlier call with this `out` was stopped."""
    assert protocol.steps is not None

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return segmentation_loss(head(patch_features(encoder, images)), labels.to(encoder.device), protocol.mask_side)

    parameters, lr, weight_decay = head.parameters(), protocol.lr, protocol.weight_decay
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
        factor: Callable[[int], float] = step_decay(protocol.steps)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        factor = polynomial_factor(protocol.steps, warmup=protocol.warmup)
    head.train()
    fit(
        head,
        loss,
        batches,
        optimizer,
        TrainingPlan(protocol.steps, factor, seed=seed),
        settings=settings,
        out=None if out is None else Path(out),
        progress=progress,
    )


def _identity(encoder: Encoder, train: SegmentationSet, protocol: LinearProtocol, seed: int) -> dict[str, Any]:
    """What the head depends on, and nothing else: neither how it is tested nor where the data lie."""
    learned = {name: value for name, value in asdict(protocol).items() if name not in ("test", "epochs")}
    learned |= {"method": "linear", "seed": seed}
    return {**learned, "training_data": train.fingerprint(), "network": encoder_identity(encoder)}


def step_decay(steps: int) -> Callable[[int], float]:
    """A tenth of the rate for the last fifth: Leopart's drop after epoch 20 of 25."""
    return lambda step: 1.0 if step < round(0.8 * steps) else 0.1


def segmentation_loss(logits: Tensor, labels: Tensor, mask_side: int | None) -> Tensor:
    """Cross-entropy of the logits, enlarged to the masks (bilinear), over the pixels that are not void; 0 if all are.

    Args:
        logits: [B, C, h, w].
        labels: int64 [B, S, S] with IGNORE.
        mask_side: that the labels are reduced to first (nearest); None: S.
    """
    if mask_side is not None:
        places = torch.arange(mask_side, device=labels.device) * labels.shape[-1] // mask_side
        labels = labels[:, places[:, None], places]
    enlarged = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    summed = F.cross_entropy(enlarged, labels, ignore_index=IGNORE, reduction="sum")
    return summed / (labels != IGNORE).sum().clamp_min(1)


def _tester(
    encoder: Encoder, head: LinearHead, protocol: LinearProtocol, num_classes: int
) -> tuple[Predict, Callable[[np.ndarray], np.ndarray]]:
    """What predicts an image, and what is done to its labels before they are compared."""
    crop = protocol.crop

    @torch.no_grad()
    def square(image: Image.Image) -> Tensor:
        small = image.resize((crop, crop), Image.Resampling.BILINEAR)
        logits = head(patch_features(encoder, tvf.pil_to_tensor(small)[None]))
        return classes_at(logits, (side, side))

    @torch.no_grad()
    def whole(image: Image.Image) -> Tensor:
        return classes_at(head(whole_features(encoder, image, crop)[None]), (image.height, image.width))

    @torch.no_grad()
    def slide(image: Image.Image) -> Tensor:
        pixels = fit_image(image, crop, LONG_OVER_SHORT * crop)[None].to(encoder.device)
        normalised = normalise(pixels, encoder.mean, encoder.std)
        stride = max(1, int(SLIDE * crop))
        logits = predict_sliding(
            lambda window: head(encoder.patches(window).float().movedim(1, -1)), normalised, crop, stride, num_classes
        )
        return classes_at(logits, (image.height, image.width))

    if protocol.test == "square":
        side = protocol.mask_side or crop
        return square, lambda label: resize_nearest(
            resize_nearest(label, (crop, crop), EVERYTHING), (side, side), EVERYTHING
        )
    return (slide if protocol.test == "slide" else whole), lambda label: label
