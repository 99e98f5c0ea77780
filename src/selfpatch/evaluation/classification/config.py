"""Settings that the classification protocols share."""

from typing import Annotated, ClassVar

from pydantic import PositiveInt

from selfpatch.config.schema import SPEED_ONLY, DataName, Seed, Workers, settings
from selfpatch.evaluation.config import LimitConfig, Precision


@settings
class ClassificationConfig(LimitConfig):
    """Centre crops of labelled images."""

    data_help: ClassVar[str] = (
        "Folder with train/ and val/ (or test/), each with one sub-folder per class, or iNaturalist, Oxford Flowers, "
        "Stanford Cars or CUB-200-2011 as downloaded."
    )

    resize: PositiveInt = 256
    """Short side that test images are resized to (bicubic), in pixels."""
    crop: PositiveInt = 224
    """Side of all crops, in pixels."""
    encode_batch: Annotated[PositiveInt, SPEED_ONLY] = 128
    """Centre crops encoded at once; changes speed and memory only."""

    def __post_init__(self) -> None:
        if self.resize < self.crop:
            raise ValueError(
                f"resize is {self.resize}, less than the crop of {self.crop} pixels; use {self.crop} or more"
            )


@settings
class TrainedClassificationConfig(ClassificationConfig):
    """A protocol that trains on labelled images."""

    labels: DataName | None = None
    """Labels to train on: a share of the images such as 1% or 10%, or a text file of image names; defaults to all."""
    epochs: PositiveInt = 100
    """Number of passes over the training images."""
    batch_size: PositiveInt = 1024
    """Images per step, capped at the number of training images."""
    precision: Precision = "float32"
    """Precision of the network; bf16 uses autocast, with float32 parameters and loss."""
    seed: Seed = 0
    """Random seed of the head, the order, the crops and the subset of labels."""
    per_class: Annotated[bool, SPEED_ONLY] = False
    """Show one row per class."""
    workers: Workers = 4
    """Number of processes that load training images; changes speed only."""
