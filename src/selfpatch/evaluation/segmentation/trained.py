"""Segmentation with a decoder, Semantic FPN or UPerNet, and the backbone fine-tuned below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.schedules import polynomial_factor
from selfpatch.core.types import Encoder
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.finetuning import layer_groups, trainable_copy
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Progress, Provenance, Result, network_sha256
from selfpatch.evaluation.segmentation.augmentation import TrainCrop
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.decoders import Norm
from selfpatch.evaluation.segmentation.decoders_network import (
    Head,
    Segmenter,
    Taps,
    default_blocks,
)
from selfpatch.evaluation.segmentation.inference import classes_at, fit_image, predict_sliding, predict_whole
from selfpatch.evaluation.segmentation.patches import LONG_OVER_SHORT
from selfpatch.evaluation.segmentation.scoring import Predict, check_at_least, check_rates, open_splits, score_images
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

Precision = Literal["float32", "bf16"]
Test = Literal["whole", "slide"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a decoder and the backbone below it are trained and tested.

    Attributes:
        steps: of AdamW; the rate falls linearly to 0, and rises to that line over the first `warmup`, at most a tenth.
        batch_size: images a step. With one, the decoder's batch norms are group norms.
        crop: side of the training crops and of the windows of a sliding test, in pixels.
        short_side: of images at scale 1, in training and test; None: the crop's.
        lr: peak learning rate of the decoder and the backbone's final norm.
        layer_decay: each layer of the backbone has so many times the rate of the one above it.
        weight_decay: of matrices; neither of norms and biases nor of positions.
        drop_path: of the last block, rising to it linearly.
        rescale: give the maps of a ViT the strides of a convolutional network; else all have that of its patches.
        normed: take the maps of a ViT through its final norm.
        channels: of the decoder; 0: the width of a ViT, 512 for others.
        auxiliary_channels: of UPerNet's auxiliary head.
        test: show the network the whole image, or windows of the crop's size.
        stride: from one window to the next, in pixels; None: 2/3 of the crop.
        precision: bf16: of the forward pass under autocast, in training.
    """

    steps: int
    batch_size: int = 16
    crop: int = 512
    short_side: int | None = None
    lr: float
    layer_decay: float = 1.0
    weight_decay: float
    drop_path: float = 0.1
    warmup: int = 1500
    rescale: bool = True
    normed: bool = False
    channels: int
    auxiliary_channels: int = 256
    test: Test
    stride: int | None = None
    precision: Precision = "float32"


_FPN = Recipe(steps=40_000, lr=6e-5, weight_decay=0.01, channels=256, test="whole")
_UPERNET = Recipe(
    steps=160_000, lr=8e-5, weight_decay=0.05, layer_decay=0.65, normed=True, channels=0, test="slide"
)  # fmt: skip
_SMALL = Recipe(
    steps=200, warmup=20, batch_size=8, crop=96, lr=2e-3, weight_decay=0.01, layer_decay=0.65, drop_path=0.0,
    channels=32, auxiliary_channels=16, test="whole", precision="bf16"
)  # fmt: skip

PRESETS: Mapping[Head, Mapping[str, Recipe]] = {
    "fpn": {
        "selfpatch": replace(_FPN, rescale=False),
        "pyramid": _FPN,
        "small": _SMALL,
    },
    "upernet": {
        "ibot": _UPERNET,
        "ibot_small": replace(_UPERNET, lr=3e-5, layer_decay=0.9),
        "small": replace(_SMALL, normed=True),
    },
}
"""The first of each head is its default. `selfpatch`: the released configuration of SelfPatch, where the four maps of a
ViT-S/16 go into the decoder at one size. `pyramid`: the same with strides 4, 8, 16, 32. `ibot`: iBOT's UPerNet for
ViT-B/16; `ibot_small`: for ViT-S/16. `small`: ours, a minute or two on two CPU cores."""


def resolve(head: Head, preset: str | None, **overrides: Any) -> Recipe:
    """The preset, with the overrides that are not None in the place of its own.

    Raises:
        ValueError: there is no such head or preset, or a value is out of range.
    """
    if head not in PRESETS:
        raise ValueError(f"there is no decoder {head!r}; use one of: {', '.join(PRESETS)}")
    choices = PRESETS[head]
    recipe = resolve_preset(choices, next(iter(choices)) if preset is None else preset, of=head, **overrides)
    if recipe.test == "whole" and recipe.stride is not None:
        raise ValueError(f"stride is {recipe.stride}, but test whole has no windows; leave it out, or use test slide")
    recipe = replace(
        recipe,
        short_side=recipe.crop if recipe.short_side is None else recipe.short_side,
        stride=max(1, recipe.crop * 2 // 3) if recipe.stride is None else recipe.stride,
        warmup=min(recipe.warmup, recipe.steps // 10),
    )
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    whole_numbers = ("steps", "batch_size", "crop", "short_side", "stride", "auxiliary_channels")
    check_at_least(1, **{name: getattr(recipe, name) for name in whole_numbers})
    check_at_least(0, warmup=recipe.warmup)
    check_rates(recipe.lr, recipe.weight_decay)
    if not 0 <= recipe.drop_path < 1:
        raise ValueError(f"drop_path is {recipe.drop_path}; use 0 (nothing is dropped) to less than 1")
    if not 0 < recipe.layer_decay <= 1:
        raise ValueError(f"layer_decay is {recipe.layer_decay}; use more than 0, up to 1 (all layers alike)")
    if recipe.channels % 2 or recipe.channels < 0:
        raise ValueError(f"channels is {recipe.channels}; use an even number, or 0 for the width of the backbone")
    if recipe.test == "slide" and (recipe.stride or 0) > recipe.crop:
        raise ValueError(f"windows of {recipe.crop} pixels, {recipe.stride} apart, leave gaps; use a smaller stride")
    for name, allowed in {"test": Test, "precision": Precision}.items():
        if getattr(recipe, name) not in get_args(allowed):
            raise ValueError(f"{name} is {getattr(recipe, name)!r}; use one of: {', '.join(get_args(allowed))}")


def evaluate_trained(
    encoder: Encoder,
    data: str | Path,
    *,
    head: Head,
    preset: str | None = None,
    kind: str | None = None,
    train_split: str = "train",
    test_split: str = "val",
    limit: int | None = None,
    blocks: tuple[int, ...] | None = None,
    seed: int = 0,
    workers: int = 0,
    max_pictures: int = 4,
    out: str | Path | None = None,
    weights: Provenance | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Result:
    """Trains a decoder and a copy of the backbone on one split, and scores them on another::

        for each step:
            logits = decoder(maps of four blocks of the backbone), enlarged to the crop
            cross-entropy of every labelled pixel -> AdamW on decoder and backbone
        mIoU, aAcc, mAcc of the test images at their own size

    Args:
        encoder: a network of this package; it is left as it is.
        data: folder of a labelled set, as `open_dataset` reads it.
        head: `fpn` or `upernet`.
        preset: of `PRESETS[head]`; None: the first.
        kind: of the data; None: told from its layout.
        limit: images of each split, evenly spread; None: all.
        blocks: which four maps, counted from 1; None: blocks 3, 6, 9, 12 (FPN) or 4, 6, 8, 12 (UPerNet) of twelve, in
            proportion of other depths; the stages of a Swin or a ResNet.
        seed: of the decoder's first weights, the order, the crops, and what is dropped.
        workers: that read images; speed only.
        max_pictures: test images to draw.
        out: folder of the pictures and of the checkpoint, from which a stopped training goes on.
        weights: what the encoder was made of, for the record.
        progress: called with `training` and the steps, then with `scoring` and the images done.
        overrides: of the preset, fields of `Recipe` by name; None: as it has them.

    Raises:
        ValueError: the encoder is no network of this package or has other than 3 channels, or the settings or the data
            do not fit, or the folder holds another training.
    """
    recipe = resolve(head, preset, **overrides)
    own = _checked(encoder)
    folder = None if out is None else Path(out)
    train_set, test_set = open_splits(data, kind, train_split, test_split, limit)
    batches = training_batches(train_set, recipe, seed, workers)
    num_classes = len(train_set.classes)
    network = build_segmenter(own, head, num_classes, recipe, blocks=blocks, seed=seed)
    settings = {"method": head, "preset": preset or next(iter(PRESETS[head])), **asdict(recipe)}
    settings |= {"channels": recipe.channels or _width(own), "norm": _norm(recipe), "blocks": list(network.taps.blocks)}
    settings |= {"seed": seed, "data": str(data), "kind": test_set.kind}
    settings |= {"train_split": train_split, "train_images": len(train_set)}
    learned = {} if out is None else _identity(own, train_set, settings)
    train(network, own, batches, recipe, seed=seed, settings=learned, out=folder, progress=progress)
    predict = predictor(network, own, recipe, num_classes)
    scored = score_images(test_set, predict, out=out, max_pictures=max_pictures, progress=progress)
    settings |= {"test_split": test_split, "test_images": len(test_set), "classes": num_classes}
    return scored.result(test_set.classes, settings, weights)


_UNLEARNED = ("preset", "test", "stride", "data", "kind", "train_split", "train_images")


def _identity(encoder: BranchEncoder, images: SegmentationSet, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on, and nothing else: neither how they are tested nor where the data lie."""
    learned = {name: value for name, value in settings.items() if name not in _UNLEARNED}
    network = {"backbone": network_sha256(encoder.backbone), "mean": encoder.mean, "std": encoder.std}
    return {**learned, **network, "training_data": images.fingerprint()}


def _checked(encoder: Encoder) -> BranchEncoder:
    if not isinstance(encoder, BranchEncoder):
        raise ValueError(
            f"a {type(encoder).__name__} cannot be fine-tuned; give weights of a ViT, a Swin or a ResNet, or use a "
            "protocol of frozen features"
        )
    if len(encoder.mean) != 3:
        raise ValueError(f"the network takes {len(encoder.mean)} channels; segmentation sets are RGB images")
    return encoder


def build_segmenter(
    encoder: BranchEncoder,
    head: Head,
    num_classes: int,
    recipe: Recipe,
    *,
    blocks: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Segmenter:
    """The network to train, on the encoder's device; the same for a seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Positions are resized once and trained so, as the released code does it, instead of in every step.
        grid = math.ceil(recipe.crop / encoder.patch_size)
        backbone = trainable_copy(encoder.backbone, drop_path=recipe.drop_path, grid=grid)
        chosen = default_blocks(backbone, head) if blocks is None else blocks
        if len(chosen) != 4 or not all(1 <= block <= len(backbone.map_dims) for block in chosen):
            raise ValueError(f"blocks are {list(chosen)}; use four of 1 to {len(backbone.map_dims)}")
        network = Segmenter(
            Taps(backbone, chosen, normed=recipe.normed),
            head,
            num_classes,
            rescale=recipe.rescale,
            channels=recipe.channels or _width(encoder),
            auxiliary_channels=recipe.auxiliary_channels,
            norm=_norm(recipe),
        )
    return network.to(encoder.device).to(memory_format=torch.channels_last)


def _width(encoder: BranchEncoder) -> int:
    """Of a decoder that is as wide as its backbone."""
    return encoder.backbone.dim if isinstance(encoder.backbone, ViT) else 512


def _norm(recipe: Recipe) -> Norm:
    """Batch norm needs more than one value a channel, which the coarsest pooling of a single image is."""
    return "batch" if recipe.batch_size > 1 else "group"


@dataclass(frozen=True)
class _Crops:
    """A training sample by its number; picklable, for the workers."""

    images: SegmentationSet
    crop: TrainCrop

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self.crop(*self.images.read(number), rng)


def training_batches(
    images: SegmentationSet, recipe: Recipe, seed: int, workers: int
) -> Batches[tuple[Tensor, Tensor]]:
    """The crops that `train` learns from."""
    short = recipe.short_side or recipe.crop
    crops = _Crops(images, TrainCrop(recipe.crop, short_side=short, long_side=LONG_OVER_SHORT * short))
    return Batches(len(images), crops, batch_size=recipe.batch_size, seed=seed, workers=workers)


def train(
    network: Segmenter,
    encoder: BranchEncoder,
    batches: Batches[tuple[Tensor, Tensor]],
    recipe: Recipe,
    *,
    seed: int = 0,
    settings: Mapping[str, Any],
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Trains in place; goes on from a checkpoint in `out`. Returns the losses of the steps taken now."""
    rates = {"lr": recipe.lr, "layer_decay": recipe.layer_decay, "weight_decay": recipe.weight_decay}
    groups = layer_groups(network, network.taps.backbone, **rates)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=encoder.device.type in ("cpu", "cuda"))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = (part.to(encoder.device, non_blocking=True) for part in batch)
        return network.loss(normalise(pixels, encoder.mean, encoder.std), labels)

    plan = TrainingPlan(
        recipe.steps,
        polynomial_factor(recipe.steps, warmup=recipe.warmup),
        seed=seed,
        precision=recipe.precision,
    )
    return fit(network.train(), loss, batches, optimizer, plan, settings=settings, out=out, progress=progress)


def predictor(network: Segmenter, encoder: BranchEncoder, recipe: Recipe, num_classes: int) -> Predict:
    """The trained network as a function of an image; in float32."""
    network.eval()
    short, stride = recipe.short_side or recipe.crop, recipe.stride or recipe.crop

    def predict(image: Image.Image) -> Tensor:
        pixels = fit_image(image, short, LONG_OVER_SHORT * short).to(encoder.device)
        pieces = normalise(pixels[None], encoder.mean, encoder.std)
        if recipe.test == "whole":
            logits = predict_whole(network, pieces)
        else:
            logits = predict_sliding(network, pieces, recipe.crop, stride, num_classes)
        return classes_at(logits, (image.height, image.width))

    return predict
