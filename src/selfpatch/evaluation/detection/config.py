"""The named settings of Mask R-CNN: what each preset is, and how they differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from selfpatch.evaluation.detection.augmentation import Augmentation
from selfpatch.evaluation.detection.network import Heads

PresetName = Literal["selfpatch", "vitdet-simple", "small"]
PyramidName = Literal["inner-maps", "last-map"]


@dataclass(frozen=True)
class Preset:
    """What decides the numbers, beside the data and the weights.

    Attributes:
        pyramid: `inner-maps`: four inner maps and a feature pyramid network; `last-map`: ViTDet's simple pyramid.
        heads: as `network.MaskRCNN` takes them; so are anchor_scale, proposals and rois.
        width: channels of the pyramid's maps; the box head has four times as many.
        augmentation: as `augmentation.draw` takes it.
        short_sides: of training images in pixels, one drawn each time; the largest one is that of evaluation.
        long_side: that no image exceeds.
        batch_size: images a step.
        epochs: passes over the training images.
        decay_at: shares of the training after which the learning rate falls to a tenth.
        warmup_steps: over which it rises linearly from a thousandth.
        lr: at a batch of `lr_batch`; proportional to the batch.
        weight_decay: of all but biases, norms and positions.
        layer_decay: factor on the learning rate for each layer further from the head.
        drop_path: rate of the last block, rising to it linearly.
        clip: largest norm of the gradient; 0: none.
    """

    pyramid: PyramidName = "inner-maps"
    heads: Heads = "linear"
    width: int = 256
    anchor_scale: float = 8.0
    proposals: int = 1000
    rois: int = 512
    augmentation: Augmentation = "multi-scale"
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    long_side: int = 1333
    batch_size: int = 8
    epochs: float = 12.0
    decay_at: tuple[float, ...] = (8 / 12, 11 / 12)
    warmup_steps: int = 500
    lr: float = 5e-5
    lr_batch: int = 8
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    drop_path: float = 0.05
    clip: float = 0.0

    def __post_init__(self) -> None:
        smallest = {"width": 8, "proposals": 1, "rois": 4, "long_side": 1, "batch_size": 1, "lr_batch": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use {least} or more")
        for name in ("anchor_scale", "epochs", "lr", "layer_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; use a number above 0")
        for name in ("warmup_steps", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; use a rate of 0 or more, below 1")
        for name, known in (("pyramid", PyramidName), ("heads", Heads), ("augmentation", Augmentation)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of: {', '.join(get_args(known))}")
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides are {list(self.short_sides)}; give one or more sides in pixels")
        if any(not 0 < share <= 1 for share in self.decay_at):
            raise ValueError(f"decay_at is {list(self.decay_at)}; give shares of the training, each above 0, at most 1")

    @property
    def canvas(self) -> int:
        """Side that batches have at least: large-scale jitter is on a square."""
        return self.long_side if self.augmentation == "large-scale-jitter" else 0

    def rate(self) -> float:
        """The learning rate at this batch."""
        return self.lr * self.batch_size / self.lr_batch

    def factor(self, step: int, steps: int) -> float:
        """On the learning rate at a step of so many: the warm-up, and a tenth after each of `decay_at`."""
        warmup = min(1.0, 0.001 + 0.999 * step / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * 0.1 ** sum(step >= round(share * steps) for share in self.decay_at)


SELFPATCH = Preset()
"""The 1x schedule of SelfPatch's tables: Mask R-CNN with a feature pyramid network, 12 epochs."""
VITDET_SIMPLE = replace(
    SELFPATCH,
    pyramid="last-map",
    heads="convolutional",
    augmentation="large-scale-jitter",
    short_sides=(1024,),
    long_side=1024,
    batch_size=64,
    epochs=100.0,
    decay_at=(163889 / 184375, 177546 / 184375),
    warmup_steps=250,
    lr=1e-4,
    lr_batch=64,
    weight_decay=0.1,
    layer_decay=0.7,
    drop_path=0.1,
)
"""ViTDet (arXiv 2203.16527), but with attention over the whole image in every block. The layer decay is a ViT-B's; a
ViT-L has 0.8."""
SMALL = replace(
    SELFPATCH,
    width=64,
    anchor_scale=2.0,
    proposals=200,
    rois=64,
    augmentation="none",
    short_sides=(160,),
    long_side=267,
    batch_size=1,
    epochs=55.0,
    warmup_steps=20,
    lr=7e-4,
    lr_batch=1,
    drop_path=0.0,
    clip=1.0,
)
"""Ours, for a CPU and a few dozen images. A ViT of width 192, depth 6 and patch 8 learns 8 images by heart, to a box
AP50 of 0.56 in 440 steps."""

PRESETS: dict[str, Preset] = {"selfpatch": SELFPATCH, "vitdet-simple": VITDET_SIMPLE, "small": SMALL}
