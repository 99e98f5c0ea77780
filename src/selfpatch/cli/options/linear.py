"""Options of the linear evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Linear(EvaluationOptions):
    """Linear classification of frozen image features: top-1 and top-5.

    Presets: `dino`, the published protocol: random crops encoded at every step, learning rate 0.001 x batch / 256, 100
    epochs at batch 1024. `sweep`, in minutes: centre crops encoded once and standardised, 16 learning rates from 0.0001
    to 10 at once, the best on held-out training images trained again on all of them, 50 epochs at batch 256."""

    evaluation: ClassVar[str] = "linear"

    data: str
    """Folder with train/ and val/ (or test/), each with a sub-folder a class."""
    preset: Literal["dino", "sweep"] = "dino"
    labels: str | None = None
    """Train on a share of the images, e.g. 1% or 10%, or on those that a text file names; None: on all."""
    blocks: int | None = None
    """Last blocks of a ViT whose image tokens are taken; None: 4 where it is narrower than 768, else 1."""
    mean_patch: bool | None = None
    """Take the mean patch too; None: where a ViT is 768 wide or more."""
    crops: Literal["random", "cached"] | None = None
    """Random crops encoded at every step, or centre crops and their mirror images encoded once. None: by the preset."""
    lrs: tuple[float, ...] | None = None
    """For a batch of 256; of several the best on held-out training images is taken. None: by the preset."""
    epochs: int | None = None
    """None: by the preset."""
    batch_size: int | None = None
    """Images a step; None: by the preset, at most the training images."""
    held_out: float = 0.1
    """Share of each class that the learning rate is chosen by, where there are several."""
    resize: int = 256
    """Short side that images are resized to, in pixels."""
    crop: int = 224
    """Side of the crops, in pixels."""
    precision: Literal["float32", "bf16"] = "float32"
    """That the network runs in; bf16: under autocast."""
    seed: int = 0
    per_class: bool = False
    """A row for each class."""
    encode_batch: int = 128
    """Centre crops that are encoded at once; speed and memory only."""
    workers: int = 4
    """Processes that load random crops; speed only."""
