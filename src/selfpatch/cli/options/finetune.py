"""Options of the fine-tuning evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Finetune(EvaluationOptions):
    """Fine-tuning of the whole network on labelled images: top-1 and top-5.

    Presets: `mae`: 100 epochs, batch 1024, lr 0.0005 x batch / 256, layer decay 0.65, drop path 0.1, mixup 0.8, cutmix
    1.0, RandAugment 9, erasing 0.25, smoothing 0.1, mean patch. `ibot`: the same with the image token, lr 0.001 and 20
    epochs of warm-up; `ibot_small`: 200 epochs, layer decay 0.75. Transfer, 1000 epochs at batch 768 without layer
    decay: `cifar` and `flowers` with lr 3.75e-6, `cars` with 3.75e-5; `inaturalist`, 360 epochs, erasing 0.1. `small`:
    30 epochs at batch 64, no augmentation but crops and flips, for a CPU."""

    evaluation: ClassVar[str] = "finetune"

    data: str
    """Folder with train/ and val/ (or test/), each with a sub-folder a class."""
    preset: Literal["mae", "ibot", "ibot_small", "cifar", "flowers", "cars", "inaturalist", "small"] = "mae"
    """Fills in what is left None below."""
    labels: str | None = None
    """Train on a share of the images, e.g. 1% or 10%, or on those that a text file names; None: on all."""
    token: Literal["image", "mean"] | None = None
    """Classify the image token, or the mean of the patches through a fresh norm."""
    epochs: int | None = None
    batch_size: int | None = None
    """Images a step, at most the training images."""
    lr: float | None = None
    """Of the head, for a batch of 256."""
    min_lr: float | None = None
    """Of the head at the end."""
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    """Learning rate of a layer over that of the layer above it."""
    drop_path: float | None = None
    """Rate of the last block."""
    mixup: float | None = None
    """Parameter of the Beta distribution; 0: off."""
    cutmix: float | None = None
    """Parameter of the Beta distribution; 0: off."""
    smoothing: float | None = None
    """Of the labels."""
    rand_augment: float | None = None
    """Magnitude, of 10; 0: off."""
    erasing: float | None = None
    """Probability that a rectangle of a crop is erased."""
    resize: int = 256
    """Short side that test images are resized to, in pixels."""
    crop: int = 224
    """Side of all crops, in pixels."""
    precision: Literal["float32", "bf16"] = "float32"
    """That the network runs in; bf16: under autocast."""
    seed: int = 0
    per_class: bool = False
    """A row for each class."""
    encode_batch: int = 128
    """Centre crops that are classified at once; speed and memory only."""
    workers: int = 4
    """Processes that load training images; speed only."""
