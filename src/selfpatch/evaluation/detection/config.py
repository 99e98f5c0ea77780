"""Settings of COCO detection and instance segmentation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import NonNegativeFloat, PositiveFloat

from selfpatch.config.schema import SPEED_ONLY, Seed, Workers, settings
from selfpatch.evaluation.config import EvaluationConfig, Precision

DATA_SETTINGS = ("preset", "train_split", "test_split", "limit", "negatives")
"""Settings that affect the trained network at most through the training data."""
HeadNorm = Literal["none", "layer", "batch"]
COCO_STEPS = 117_266 // 16
"""Steps per epoch of 16 images on COCO train2017, whose 117,266 images with objects are trained on."""

_IBOT: Mapping[str, Any] = {
    "detector": "cascade", "heads": "convolutional", "box_norm": "batch", "rpn_loss": "smooth-l1", "box_loss": "giou",
    "anchors_inside": True, "train_proposals": 2000, "batch_size": 16, "warmup_steps": 500, "lr": 1e-4, "lr_batch": 16,
    "weight_decay_on": "matrices", "layer_decay": 0.75, "drop_path": 0.2,
}  # fmt: skip
"""Cascade Mask R-CNN of iBOT's released config and commands for a ViT-B (evaluation/README.md, 12 epochs)."""


@settings
class DetectionConfig(EvaluationConfig):
    """COCO detection and instance segmentation: Mask R-CNN fine-tuned on the network, AP of boxes and of masks.

    Presets: `selfpatch`, the 1x schedule of SelfPatch's tables: four inner maps, a feature pyramid network, 12 epochs.
    `ibot` and `ibot_small`, Cascade Mask R-CNN as iBOT and SERE report it for a ViT-B and a ViT-S. `resnet`, the 1x
    schedule of MoCo-v2, DenseCL and DetCo for a ResNet-50: SGD, batch norms trained everywhere. `vitdet-simple`, ViTDet
    (arXiv 2203.16527) with global attention in every block; its layer decay is a ViT-B's, and 0.8 for a ViT-L. `small`,
    ours, for a CPU and a few dozen images; a ViT of width 192, depth 6 and patch size 8 overfits 8 images, to a box
    AP50 of 0.56 in 440 steps.
    """

    data_help: ClassVar[str] = "COCO tree: annotations/instances_SPLIT.json and a folder of images for each split."
    network_settings: ClassVar[frozenset[str]] = frozenset({"blocks", "strides"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "selfpatch": {},
        "ibot": _IBOT,
        "ibot_small": {**_IBOT, "batch_size": 32, "lr_batch": 32, "layer_decay": 0.8, "drop_path": 0.1},
        "resnet": {
            "heads": "convolutional", "box_norm": "batch", "mask_norm": "batch", "pyramid_norm": "batch",
            "train_batch_norms": True, "precise_bn": 200, "min_anchor_iou": 0.0, "augmentation": "resize",
            "short_sides": (640, 672, 704, 736, 768, 800), "batch_size": 16, "epochs": 90_000 / COCO_STEPS,
            "decay_at": (60 / 90, 80 / 90), "optimizer": "sgd", "lr": 0.02, "lr_batch": 16, "weight_decay": 1e-4,
            "drop_path": 0.0,
        },
        "vitdet-simple": {
            "pyramid": "last-map", "heads": "convolutional", "rpn_depth": 2, "box_norm": "layer", "mask_norm": "layer",
            "min_anchor_iou": 0.0, "augmentation": "large-scale-jitter", "short_sides": (1024,), "long_side": 1024,
            "batch_size": 64, "epochs": 100.0, "decay_at": (163889 / 184375, 177546 / 184375), "warmup_steps": 250,
            "lr": 1e-4, "lr_batch": 64, "weight_decay": 0.1, "layer_decay": 0.7, "drop_path": 0.1,
        },
        "small": {
            "width": 64, "anchor_scale": 2.0, "proposals": 200, "rois": 64, "augmentation": "none",
            "short_sides": (160,), "long_side": 267, "batch_size": 1, "epochs": 55.0, "warmup_steps": 20, "lr": 7e-4,
            "lr_batch": 1, "drop_path": 0.0, "clip": 1.0,
        },
    }  # fmt: skip

    preset: Literal["selfpatch", "ibot", "ibot_small", "resnet", "vitdet-simple", "small"] = "selfpatch"
    """Published protocol whose settings are the defaults."""
    train_split: str = "train2017"
    """Split to train on."""
    test_split: str = "val2017"
    """Split to score."""
    limit: Annotated[int, Ge(1)] | None = None
    """Number of images of each split to use, the first ones; all if not given."""
    negatives: bool = False
    """Train on images without objects too, which the published protocols leave out."""
    detector: Literal["mask-rcnn", "cascade"] = "mask-rcnn"
    """Detector: Mask R-CNN, or Cascade Mask R-CNN with three stages of heads at IoU 0.5, 0.6 and 0.7."""
    pyramid: Literal["inner-maps", "last-map"] = "inner-maps"
    """Feature pyramid: four inner maps and a feature pyramid network, or ViTDet's simple pyramid of the last map."""
    blocks: tuple[int, ...] | None = None
    """Blocks of a ViT, counted from 1, whose maps inner-maps uses; defaults to 1/3, 1/2, 2/3 and all of its depth."""
    heads: Literal["linear", "convolutional"] = "linear"
    """Box head: two fully connected layers, or four convolutions and one fully connected layer."""
    rpn_depth: Annotated[int, Ge(1)] = 1
    """Number of convolutions of the proposal head."""
    box_norm: HeadNorm = "none"
    """Norm after each convolution of the box head (convolutional only): none, LayerNorm, or a global batch norm."""
    mask_norm: HeadNorm = "none"
    """Norm after each convolution of the mask head: none, LayerNorm, or a batch norm over the global batch."""
    pyramid_norm: Literal["none", "batch"] = "none"
    """Norm after each convolution of the feature pyramid network (inner-maps only)."""
    train_batch_norms: bool = False
    """Train the batch norms of a ResNet, with the statistics of the global batch; otherwise statistics stay fixed."""
    precise_bn: Annotated[int, Ge(0)] = 0
    """Number of steps after training whose mean statistics the batch norms use from then on; 0 for moving averages."""
    width: Annotated[int, Ge(8)] = 256
    """Number of channels of the pyramid's maps; the box head has four times as many."""
    anchor_scale: PositiveFloat = 8.0
    """Side of the anchors in strides of their map; 8 gives 32 to 512 pixels."""
    min_anchor_iou: Annotated[float, Ge(0), Le(1)] = 0.3
    """Smallest share of common area (IoU) at which the best anchor of an object is trained on it, if none has 0.7."""
    anchors_inside: bool = False
    """Train the proposals only on anchors that lie within the image."""
    proposals: Annotated[int, Ge(1)] = 1000
    """Number of proposals per image, of twice as many per map in training."""
    train_proposals: Annotated[int, Ge(1)] | None = None
    """Number of proposals per image in training; defaults to that of evaluation."""
    rois: Annotated[int, Ge(4)] = 512
    """Number of proposals per image that the heads are trained on, a quarter of them on objects."""
    rpn_loss: Literal["l1", "smooth-l1"] = "l1"
    """Loss of the boxes of proposals; smooth-l1 is quadratic below 1/9."""
    box_loss: Literal["l1", "giou"] = "l1"
    """Loss of the boxes of the heads: L1 of their offsets, or 10 times the generalised IoU loss (arXiv 1902.09630)."""
    augmentation: Literal["multi-scale", "resize", "large-scale-jitter", "none"] = "multi-scale"
    """Augmentation of training images; all of them are also flipped horizontally with probability 1/2."""
    short_sides: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (
        480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800,
    )  # fmt: skip
    """Short sides of training images in pixels, one drawn for each image; evaluation uses the largest."""
    long_side: Annotated[int, Ge(1)] = 1333
    """Largest long side of an image, in pixels."""
    batch_size: Annotated[int, Ge(1)] = 8
    """Images per step, capped at the number of training images; the learning rate is proportional to it."""
    epochs: PositiveFloat = 12.0
    """Number of passes over the training images."""
    decay_at: tuple[Annotated[float, Gt(0), Le(1)], ...] = (8 / 12, 11 / 12)
    """Shares of the training after which the learning rate falls to a tenth."""
    warmup_steps: Annotated[int, Ge(0)] = 1000
    """Number of steps over which the learning rate rises linearly from a thousandth."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer; sgd has a momentum of 0.9."""
    lr: PositiveFloat = 5e-5
    """Learning rate at a batch of `lr_batch` images."""
    lr_batch: Annotated[int, Ge(1)] = 8
    """Batch size that `lr` is for."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay."""
    weight_decay_on: Literal["all_but_norms", "matrices"] = "all_but_norms"
    """Parameters that decay: all but norms, tokens and position embeddings, or those of two or more dimensions."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Layer-wise learning-rate decay factor."""
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Stochastic depth rate of the last block; it rises linearly from 0."""
    clip: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 turns clipping off."""
    precision: Precision = "float32"
    """Precision of the forward pass; bf16 uses autocast."""
    seed: Seed = 0
    """Random seed of initialisation, order and augmentation."""
    workers: Workers = 0
    """Number of processes that load images; changes speed only."""
    max_pictures: Annotated[int, Ge(0), SPEED_ONLY] = 4
    """Number of images of the scored split to draw with their detections."""

    @property
    def canvas(self) -> int:
        """Smallest side of a batch, in pixels: large-scale jitter pads images to a square."""
        return self.long_side if self.augmentation == "large-scale-jitter" else 0

    @property
    def scaled_lr(self) -> float:
        """Learning rate at this batch size."""
        return self.lr * self.batch_size / self.lr_batch

    def lr_factor(self, step: int, num_steps: int) -> float:
        """Return the factor on the learning rate at a step: the warm-up, and a tenth after each of `decay_at`."""
        warmup = min(1.0, 0.001 + 0.999 * step / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * 0.1 ** sum(step >= round(share * num_steps) for share in self.decay_at)

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that decide the trained network, except those that choose the training data."""
        return {name: value for name, value in self.recorded().items() if name not in DATA_SETTINGS}
