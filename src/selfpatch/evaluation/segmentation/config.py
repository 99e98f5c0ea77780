"""Settings of the segmentation evaluation, one class per method."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, settings
from selfpatch.evaluation.config import EvaluationConfig, Precision

Method = Literal["knn", "linear", "logistic", "kmeans", "finetune", "fpn", "upernet"]
Kind = Literal[
    "ade20k", "voc", "coco_stuff171", "coco_stuff27", "coco_stuff10k", "cityscapes", "camvid", "imagenet_s", "folder"
]


@settings
class SegmentationConfig(EvaluationConfig):
    """Semantic segmentation with patch features: mIoU, aAcc, mAcc.

    Methods: knn (patches take the labels of the most similar training patches), linear (a 1x1 convolution on frozen
    features), logistic (the same by L-BFGS, with nothing to tune), kmeans (clusters matched to classes, no training),
    finetune, fpn and upernet (a 1x1 convolution, or a decoder, trained with the network). See `--method fpn --help`.
    """

    data_help: ClassVar[str] = (
        "ADE20K, Pascal VOC 2012, COCO-Stuff, Cityscapes, CamVid or ImageNet-S as downloaded, or a folder with "
        "images/, labels/ and classes.txt."
    )
    network_settings: ClassVar[frozenset[str]] = frozenset({"patch_size", "remembered", "blocks", "channels"})

    method: Method = "linear"
    """Method of segmentation; it decides which other settings there are."""
    kind: Kind | None = None
    """Kind of the data set; if not given, it is found from the layout of the folder."""
    test_split: str = "val"
    """Name of the split to score."""
    limit: PositiveInt | None = None
    """Number of images per split, evenly spread; defaults to all."""
    seed: NonNegativeInt = 0
    """Random seed of everything that is drawn."""
    max_pictures: Annotated[NonNegativeInt, SPEED_ONLY] = 4
    """Number of images in pictures/segments.png, each with labels and prediction."""

    def __post_init__(self) -> None:
        if self.method != (expected := type(self).method):
            raise ValueError(f"method is {self.method!r}, but {type(self).__name__} is of {expected!r}; use that")


@settings
class SupervisedConfig(SegmentationConfig):
    """A method that learns from a labelled split."""

    train_split: str = "train"
    """Name of the split to learn from; published numbers on VOC train on trainaug."""


@settings
class PatchConfig(SegmentationConfig):
    """A method that learns from patches of whole images."""

    resolution: PositiveInt = 320
    """Short side of whole images, in pixels."""
    memory_patches: PositiveInt = 1_000_000
    """Largest number of patches to learn from, equally many per image."""


@settings
class KNNSegmentationConfig(SupervisedConfig, PatchConfig):
    """Retrieval: patches take the labels of the most similar training patches."""

    method: Method = "knn"
    resolution: PositiveInt = 512
    k: PositiveInt = 30
    """Number of patches that vote."""
    temperature: PositiveFloat = 0.02
    """Softmax temperature of the votes."""
    max_memory: Annotated[PositiveInt, SPEED_ONLY] = 128
    """Memory limit in MB for the similarities of patches, and for the logits of an image; changes speed and memory
    only. The remembered patches and the encoder's own memory come on top."""


@settings
class LogisticSegmentationConfig(SupervisedConfig, PatchConfig):
    """Logistic regression on frozen patches by L-BFGS."""

    method: Method = "logistic"
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty on the weights."""
    iterations: PositiveInt = 100
    """Largest number of L-BFGS iterations."""


@settings
class KMeansSegmentationConfig(PatchConfig):
    """Clusters of the test images' patches, matched to classes, without training."""

    method: Method = "kmeans"
    memory_patches: PositiveInt = 200_000
    num_clusters: PositiveInt | None = None
    """Number of clusters; defaults to the number of classes. More of them need another `matching` (overclustering)."""
    matching: Literal["one_to_one", "precision", "iou"] = "one_to_one"
    """Class of a cluster: `one_to_one` so that most pixels are right, or that of its highest `precision` or `iou`."""
    iterations: PositiveInt = 50
    """Largest number of iterations per run of k-means."""
    restarts: PositiveInt = 3
    """Number of runs of k-means, of which the best is taken."""


@settings
class TrainedConfig(SupervisedConfig):
    """A method that trains by gradient descent."""

    batch_size: PositiveInt = 16
    """Images per step; part of the protocol. With a single image, the decoders' batch norms become group norms."""
    crop: PositiveInt = 512
    """Side of the training crops, and of the test windows, in pixels."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of the optimizer."""
    workers: Annotated[NonNegativeInt, SPEED_ONLY] = 0
    """Number of processes that load training images; changes speed only."""

    def learned(self) -> dict[str, Any]:
        """Return the settings that decide the trained weights: neither how they are tested nor where the data lie."""
        testing = ("preset", "kind", "train_split", "test_split", "limit", "test", "stride", "epochs")
        return {name: value for name, value in self.recorded().items() if name not in testing}


@settings
class LinearSegmentationConfig(TrainedConfig):
    """Linear segmentation: one 1x1 convolution on frozen patch features.

    Presets: `leopart`, Ziegler and Asano (arXiv 2204.13101) and their released code; `full`, the linear protocol of
    DINOv2 (arXiv 2304.07193) on mmsegmentation; `small`, ours, for a minute or two on a CPU.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "leopart": {},
        "full": {
            "crop": 512, "augmentation": "scale_crop", "optimizer": "adamw", "lr": 1e-3, "batch_size": 16,
            "steps": 40_000, "epochs": None, "warmup": 1500, "batch_norm": True, "mask_side": None, "test": "slide",
        },
        "small": {
            "crop": 160, "augmentation": "scale_crop", "optimizer": "adamw", "lr": 5e-3, "batch_size": 8,
            "steps": 120, "epochs": None, "warmup": 12, "batch_norm": True, "mask_side": 40, "test": "whole",
        },
    }  # fmt: skip

    method: Method = "linear"
    preset: Literal["leopart", "full", "small"] = "leopart"
    """Published protocol whose settings are the defaults."""
    crop: PositiveInt = 448
    """Side of the training and test images, in pixels, rounded down to a multiple of the patch size."""
    augmentation: Literal["resized_crop", "scale_crop"] = "resized_crop"
    """Training crops: resized_crop makes a box of 80 to 100 % of the image square; scale_crop draws a scale of 0.5 to
    2 and a crop, and distorts colours. Both flip."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: sgd (momentum 0.9, rate / 10 after 4/5 of the steps), or adamw (warm-up, linear decay)."""
    lr: PositiveFloat = 0.01
    """Peak learning rate."""
    batch_size: PositiveInt = 60
    steps: PositiveInt | None = None
    """Number of optimizer steps; if not given, derived from epochs."""
    epochs: PositiveInt | None = 25
    """Number of passes over the training images; ignored if steps is given."""
    warmup: NonNegativeInt = 0
    """Steps over which the learning rate rises, at most a tenth of all; adamw only."""
    batch_norm: bool = False
    """Normalise features by a batch norm before the convolution."""
    mask_side: PositiveInt | None = 100
    """Side in pixels that labels are reduced to in training, and in a square test; if None, they keep their size."""
    test: Literal["square", "whole", "slide"] = "square"
    """View of a test image: square squeezes it to the crop and scores at mask_side; whole resizes its short side to
    the crop; slide also cuts it into windows, 2/3 of the crop apart. The last two are scored at the image's size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "sgd" and self.warmup:
            raise ValueError(f"warmup is {self.warmup}, but sgd trains without; leave it out, or use preset full")
        if self.steps is None and self.epochs is None:
            raise ValueError("steps and epochs are None; use a number for one of them")


@settings
class FinetuneSegmentationConfig(TrainedConfig):
    """A 1x1 convolution on the last patches, trained with the network.

    Presets: `imagenet_s`, SERE's ViT-S/16 on ImageNet-S by the released ImageNetSegModel (arXiv 2106.03149);
    `imagenet_s_base`, its published ViT-B/16, which is MAE's, because SERE's is not; `imagenet_s_base_tuned`, the same
    for a network that was fine-tuned on ImageNet before; `small`, ours, a minute or two on two CPU cores.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet_s": {},
        "imagenet_s_base": {"layer_decay": 0.6},
        "imagenet_s_base_tuned": {"lr": 1e-4, "layer_decay": 0.4},
        "small": {
            "crop": 96, "short_side": 112, "batch_size": 8, "epochs": 20, "lr": 0.06, "warmup_epochs": 2.0,
            "min_scale": 0.5, "layer_decay": 0.65, "drop_path": 0.0,
        },
    }  # fmt: skip

    method: Method = "finetune"
    preset: Literal["imagenet_s", "imagenet_s_base", "imagenet_s_base_tuned", "small"] = "imagenet_s"
    """Published protocol whose settings are the defaults."""
    crop: PositiveInt = 224
    """Side of the training crops, in pixels; colours are distorted as in SimCLR."""
    min_scale: Annotated[float, Gt(0), Le(1)] = 0.14
    """Smallest area of a training crop, as a share of the image."""
    short_side: PositiveInt = 256
    """Short side of test images, in pixels."""
    max_side: PositiveInt = 1000
    """Longest side of the prediction of an image with more pixels than this side squared; it is then enlarged."""
    batch_size: PositiveInt = 256
    epochs: PositiveInt = 100
    """Number of passes over the training images."""
    lr: PositiveFloat = 5e-4
    """Learning rate of the head for a batch of 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate of the head at the end."""
    warmup_epochs: NonNegativeFloat = 5.0
    """Number of epochs over which the learning rate rises linearly."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW on matrices; norms, biases, tokens and positions have none."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 0.5
    """Layer-wise learning-rate decay factor of the backbone."""
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Stochastic depth rate of the last block; it rises linearly from 0."""
    precision: Precision = "float32"
    """Precision of the forward pass in training; bf16 uses autocast. Tests run in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; use fewer, e.g. 0")

    def learned(self) -> dict[str, Any]:
        """Return the settings that decide the trained weights, the number of epochs among them."""
        kept = {name: value for name, value in super().learned().items() if name not in ("short_side", "max_side")}
        return {**kept, "epochs": self.epochs}


_SMALL_DECODER = {
    "steps": 200, "warmup": 20, "batch_size": 8, "crop": 96, "lr": 2e-3, "weight_decay": 0.01, "decay_norms": False,
    "layer_decay": 0.65, "drop_path": 0.0, "channels": 32, "auxiliary_channels": 16, "test": "whole",
    "precision": "bf16", "rescale": True,
}  # fmt: skip


@settings
class DecoderConfig(TrainedConfig):
    """A decoder, trained with a copy of the backbone below it by AdamW."""

    steps: PositiveInt = 40_000
    """Number of optimizer steps; the learning rate falls linearly to 0."""
    lr: PositiveFloat = 6e-5
    """Peak learning rate of the decoder."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay; tokens and positions have none."""
    decay_norms: bool = False
    """Decay norms and biases too."""
    warmup: NonNegativeInt = 1500
    """Steps over which the learning rate rises, at most a tenth of all."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Layer-wise learning-rate decay factor of the backbone."""
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Stochastic depth rate of the last block; it rises linearly from 0."""
    short_side: PositiveInt | None = None
    """Short side of images at scale 1, in training and test, in pixels; defaults to the crop."""
    blocks: Annotated[tuple[PositiveInt, ...], Len(4, 4)] | None = None
    """Four blocks (ViT) or stages whose maps the decoder sees, counted from 1. By default fpn takes blocks 3, 6, 9, 12
    of twelve, and upernet 4, 6, 8, 12, in proportion for other depths."""
    rescale: bool = True
    """Give a ViT's maps strides 4, 8, 16 and 32; otherwise all keep the stride of a patch."""
    normed: bool = False
    """Put a ViT's final norm on every map."""
    channels: Annotated[NonNegativeInt, MultipleOf(2)] = 256
    """Width of the decoder; 0 takes the width of a ViT, or 512."""
    auxiliary_channels: PositiveInt = 256
    """Width of the auxiliary head (upernet only)."""
    test: Literal["whole", "slide"] = "whole"
    """View of a test image: the whole, or windows of the crop's size."""
    stride: PositiveInt | None = None
    """Distance of windows in a sliding test, in pixels; defaults to 2/3 of the crop."""
    precision: Precision = "float32"
    """Precision of the forward pass in training; bf16 uses autocast. Tests run in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test == "whole" and self.stride is not None:
            raise ValueError(f"stride is {self.stride}, but test whole has no windows; leave it out, or use test slide")
        if self.stride is not None and self.stride > self.crop:
            raise ValueError(f"windows of {self.crop} pixels, {self.stride} apart, leave gaps; use a smaller stride")


@settings
class FPNConfig(DecoderConfig):
    """Semantic FPN, trained with the network.

    Presets: `selfpatch`, the released configuration of SelfPatch, where the four maps of a ViT-S/16 enter the decoder
    at one size; `pyramid`, the same with strides 4, 8, 16, 32; `small`, ours, a minute or two on two CPU cores.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "selfpatch": {},
        "pyramid": {"rescale": True},
        "small": _SMALL_DECODER,
    }

    method: Method = "fpn"
    preset: Literal["selfpatch", "pyramid", "small"] = "selfpatch"
    """Published protocol whose settings are the defaults."""
    decay_norms: bool = True
    rescale: bool = False


_IBOT_SMALL = {"lr": 3e-5, "layer_decay": 0.9}
_VOC = {"train_split": "trainaug", "steps": 40_000}


@settings
class UPerNetConfig(DecoderConfig):
    """UPerNet, trained with the network.

    Presets: `ibot`, iBOT's for a ViT-B/16 on ADE20K; `ibot_small`, for a ViT-S/16; `voc` and `voc_small`, the same for
    Pascal VOC 2012 (trainaug), with a schedule of ours of 40,000 steps, 60 epochs; `small`, ours, for CPUs.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ibot": {},
        "ibot_small": _IBOT_SMALL,
        "voc": _VOC,
        "voc_small": {**_IBOT_SMALL, **_VOC},
        "small": _SMALL_DECODER,
    }

    method: Method = "upernet"
    preset: Literal["ibot", "ibot_small", "voc", "voc_small", "small"] = "ibot"
    """Published protocol whose settings are the defaults."""
    steps: PositiveInt = 160_000
    lr: PositiveFloat = 8e-5
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: Annotated[float, Gt(0), Le(1)] = 0.65
    normed: bool = True
    channels: Annotated[NonNegativeInt, MultipleOf(2)] = 0
    test: Literal["whole", "slide"] = "slide"


_FROZEN = (KNNSegmentationConfig, LinearSegmentationConfig, LogisticSegmentationConfig, KMeansSegmentationConfig)
_TRAINED = (FinetuneSegmentationConfig, FPNConfig, UPerNetConfig)
SegmentationConfig.variants = ("method", {cls.method: cls for cls in (*_FROZEN, *_TRAINED)})
