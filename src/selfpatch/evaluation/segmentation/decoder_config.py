"""Settings of the segmentation methods that train the network: a 1x1 convolution or a decoder on top of it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from selfpatch.config.schema import settings
from selfpatch.core.text import counted
from selfpatch.evaluation.config import Precision
from selfpatch.evaluation.segmentation.base_config import Method, TrainedConfig

Decayed = Literal["matrices_but_tokens", "matrices", "all_but_tokens"]

_SMALL_DECODER = {
    "steps": 200, "warmup": 20, "batch_size": 8, "crop": 96, "lr": 2e-3, "weight_decay": 0.01,
    "weight_decay_on": "matrices_but_tokens", "layer_decay": 0.65, "drop_path": 0.0, "channels": 32,
    "auxiliary_channels": 16, "test": "whole", "precision": "bf16", "rescale": True,
}  # fmt: skip
_IBOT_SMALL = {"lr": 3e-5, "layer_decay": 0.9}
_VOC = {"train_split": "trainaug", "steps": 40_000}


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
            "crop": 96, "short_side": 112, "batch_size": 8, "epochs": 20, "lr": 6e-3, "warmup_epochs": 2.0,
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
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} of {counted(self.epochs, 'epoch')}; use fewer, e.g. 0"
            )

    def learned(self) -> dict[str, Any]:
        """Return the settings that decide the trained weights, the number of epochs among them."""
        kept = {name: value for name, value in super().learned().items() if name not in ("short_side", "max_side")}
        return {**kept, "epochs": self.epochs}


@settings
class DecoderConfig(TrainedConfig):
    """A decoder, trained with a copy of the backbone below it by AdamW."""

    steps: PositiveInt = 40_000
    """Number of optimizer steps; the learning rate falls linearly to 0."""
    lr: PositiveFloat = 6e-5
    """Peak learning rate of the decoder."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    weight_decay_on: Decayed = "matrices_but_tokens"
    """Parameters that decay: matrices without tokens and positions, all matrices, or all but tokens and positions."""
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
    # The released configuration exempts names with `norm`, but a ViT's norms are called ln1 and ln2 there.
    weight_decay_on: Decayed = "all_but_tokens"
    rescale: bool = False


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
    # The released optimizer means to exempt tokens, but compares with names that lack the prefix `backbone.`.
    weight_decay_on: Decayed = "matrices"
    layer_decay: Annotated[float, Gt(0), Le(1)] = 0.65
    normed: bool = True
    channels: Annotated[NonNegativeInt, MultipleOf(2)] = 0
    test: Literal["whole", "slide"] = "slide"
