"""Options of the detection evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Detect(EvaluationOptions):
    """COCO detection and instance segmentation: Mask R-CNN fine-tuned on the network, AP of boxes and of masks."""

    evaluation: ClassVar[str] = "detect"

    data: str
    """COCO tree: annotations/instances_SPLIT.json and a folder of images for each split."""
    preset: Literal["selfpatch", "vitdet-simple", "small"] = "selfpatch"
    """What gives the settings that are None. selfpatch: the 1x schedule of SelfPatch's tables (four inner maps, feature
    pyramid network, 12 epochs, short sides 480 to 800 with crops, lr 5e-5 at batch 8, drop path 0.05). vitdet-simple:
    ViTDet (pyramid of the last map, LayerNorm heads, 100 epochs, large-scale jitter at 1024, lr 1e-4 at batch 64, layer
    decay 0.7, drop path 0.1). small: for CPUs and a few dozen images (short side 160, narrow heads, no crops)."""
    train_split: str = "train2017"
    """To train on."""
    test_split: str = "val2017"
    """To score."""
    limit: int | None = None
    """Use the first so many images of each split only."""
    negatives: bool = False
    """Train on images without objects too, which the published protocols leave out."""
    pyramid: Literal["inner-maps", "last-map"] | None = None
    """Four inner maps and a feature pyramid network, or ViTDet's simple pyramid of the last map."""
    blocks: tuple[int, ...] | None = None
    """Of a ViT, counted from 1, whose maps inner-maps takes; None: at 1/3, 1/2, 2/3 and the end of its depth."""
    heads: Literal["linear", "convolutional"] | None = None
    """Two fully connected layers for boxes, or ViTDet's convolutions with LayerNorm."""
    width: int | None = None
    """Channels of the pyramid; the box head has four times as many."""
    anchor_scale: float | None = None
    """Side of the anchors in strides of their map."""
    proposals: int | None = None
    """Kept in an image."""
    rois: int | None = None
    """Proposals of an image that the heads learn from."""
    augmentation: Literal["multi-scale", "large-scale-jitter", "none"] | None = None
    """Of the training images, which are mirrored in any case."""
    short_sides: tuple[int, ...] | None = None
    """Of training images in pixels, one drawn each time; the largest is that of evaluation."""
    long_side: int | None = None
    """In pixels, that no image exceeds."""
    batch_size: int | None = None
    """Images a step; the learning rate is proportional to it."""
    epochs: float | None = None
    decay_at: tuple[float, ...] | None = None
    """Shares of the training after which the learning rate falls to a tenth."""
    warmup_steps: int | None = None
    lr: float | None = None
    """At a batch of lr_batch images."""
    lr_batch: int | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    """Factor on the learning rate for each layer further from the head."""
    drop_path: float | None = None
    clip: float | None = None
    """Largest norm of the gradient; 0: none."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the forward pass."""
    seed: int = 0
    workers: int = 0
    """Processes that load images."""
    max_pictures: int = 4
    """Images of the scored split to draw with what is found in them."""
