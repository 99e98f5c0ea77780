"""Settings that segmentation methods share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, DataName, Seed, Workers, settings
from selfpatch.evaluation.config import DenseConfig, LimitConfig

Method = Literal["knn", "linear", "logistic", "kmeans", "finetune", "fpn", "upernet"]
Kind = Literal[
    "ade20k", "voc", "coco_stuff171", "coco_stuff27", "coco_stuff10k", "cityscapes", "camvid", "imagenet_s", "folder"
]


@settings
class SegmentationConfig(LimitConfig):
    """Semantic segmentation with patch features: mIoU, aAcc, mAcc.

    Methods: knn (patches take the labels of the most similar training patches), linear (a 1x1 convolution on frozen
    features), logistic (the same by L-BFGS, with nothing to tune), kmeans (clusters matched to classes, no training),
    finetune, fpn and upernet (a 1x1 convolution, or a decoder, trained with the network). See `--method fpn --help`.
    """

    data_help: ClassVar[str] = (
        "ADE20K, Pascal VOC 2012, COCO-Stuff, Cityscapes, CamVid or ImageNet-S as downloaded, or a folder with "
        "images/, labels/ and classes.txt."
    )
    network_settings: ClassVar[frozenset[str]] = DenseConfig.network_settings | {
        "patch_size", "remembered", "blocks", "channels",
    }  # fmt: skip

    method: Method = "linear"
    """Method of segmentation; it decides which other settings there are."""
    kind: Kind | None = None
    """Kind of the data set; if not given, it is found from the layout of the folder."""
    test_split: str = "val"
    """Name of the split to score."""
    seed: Seed = 0
    """Random seed of everything that is drawn."""
    absent_as_zero: bool = False
    """Count classes that neither the labels nor the predictions have as an IoU of 0 in the mean, as Leopart's code
    does; else they are left out."""
    max_pictures: Annotated[NonNegativeInt, SPEED_ONLY] = 4
    """Number of images in pictures/segments.jpg, each with labels and prediction."""

    def __post_init__(self) -> None:
        if self.method != (expected := type(self).method):
            raise ValueError(f"method is {self.method!r}, but {type(self).__name__} is of {expected!r}; use that")


@settings
class SupervisedConfig(SegmentationConfig):
    """A method that learns from a labelled split."""

    train_split: str = "train"
    """Name of the split to learn from; published numbers on VOC train on trainaug."""
    train_part: DataName | None = None
    """Part of the training images: a share such as 1/128 or 5%, drawn by the seed, or a text file of their names, one a
    line; defaults to all."""


@settings
class PatchConfig(DenseConfig, SegmentationConfig):
    """A method that learns from patches of whole images."""

    resolution: PositiveInt = 320
    """Short side of whole images, or side of square ones, in pixels; rounded to patches."""
    shape: Literal["whole", "square"] = "whole"
    """Shape of images: `whole` keeps the sides' ratio and scores at the size of the labels; `square` squeezes images
    (antialiased) to a side that is rounded down to patches, and scores at this size."""
    mask_side: PositiveInt | None = None
    """Side in pixels at which square images are scored; defaults to their own."""
    memory_patches: PositiveInt | None = 1_000_000
    """Largest number of patches to learn from, equally many per image; all if None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_side is not None and self.shape != "square":
            raise ValueError(
                f"mask_side is {self.mask_side}, but whole images are scored at the size of their labels; leave it "
                "out, or set shape to square"
            )


@settings
class TrainedConfig(SupervisedConfig):
    """A method that trains by gradient descent."""

    batch_size: PositiveInt = 16
    """Images per step, capped at the number of training images; with a single one, decoders have group norms."""
    crop: PositiveInt = 512
    """Side of the training crops, and of the test windows, in pixels."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of the optimizer."""
    workers: Workers = 0
    """Number of processes that load training images; changes speed only."""

    def learned(self) -> dict[str, Any]:
        """Return the settings that decide the trained weights: neither how they are tested nor where the data lie."""
        testing = {
            "preset", "kind", "train_split", "train_part", "test_split", "limit", "test", "stride", "epochs",
            "absent_as_zero",
        }  # fmt: skip
        return {name: value for name, value in self.recorded().items() if name not in testing}
