"""Options of the segmentation evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Segment(EvaluationOptions):
    """Semantic segmentation with patch features: mIoU, aAcc, mAcc.

    Methods: knn (patches take the labels of the training patches they resemble), linear (a 1x1 convolution on frozen
    features), logistic (the same by L-BFGS, with nothing to tune), kmeans (clusters matched to classes,
    no training), fpn and upernet (decoders trained with the network).
    An option that is not given is as the method or its preset has it; one that the method does not read is refused."""

    evaluation: ClassVar[str] = "segment"

    data: str
    """ADE20K, Pascal VOC 2012, COCO-Stuff, Cityscapes, CamVid or ImageNet-S as downloaded, or a folder with images/,
    labels/ and classes.txt."""
    method: Literal["knn", "linear", "logistic", "kmeans", "fpn", "upernet"] = "linear"
    preset: str | None = None
    """Of linear: leopart (the default; 448 pixels, masks of 100x100, SGD 0.01, 25 epochs), full (crops of 512, batch
    norm, AdamW 0.001, 40,000 steps, sliding windows, full masks) or small (ours, for CPUs: 160 pixels, 120 steps). Of
    fpn: selfpatch (the default; four maps of one size, as released), pyramid (strides 4 to 32) or small. Of upernet:
    ibot (the default; for ViT-B), ibot_small (for ViT-S) or small."""
    kind: (
        Literal["ade20k", "voc", "coco_stuff171", "coco_stuff27", "cityscapes", "camvid", "imagenet_s", "folder"] | None
    ) = None
    """None: told from the layout."""
    train_split: str | None = None
    """None: train. Published numbers on VOC train on trainaug."""
    test_split: str = "val"
    limit: int | None = None
    """Images of each split, evenly spread; None: all."""
    seed: int = 0
    max_pictures: int = 4
    """Images to show in pictures/segments.png: image, labels, prediction."""
    workers: int | None = None
    """Loader processes of what is trained; speed only."""
    steps: int | None = None
    """Of the training."""
    batch_size: int | None = None
    """Of the training; part of the protocol."""
    crop: int | None = None
    """Side of the training crops, and of what the network sees at a time in testing, in pixels."""
    short_side: int | None = None
    """Of images at scale 1 in fpn and upernet, in pixels."""
    lr: float | None = None
    weight_decay: float | None = None
    warmup: int | None = None
    """Steps over which the learning rate rises; leopart has no such steps."""
    layer_decay: float | None = None
    """Of fpn and upernet: each layer of the network learns at so many times the rate of the one above."""
    drop_path: float | None = None
    """Of fpn and upernet."""
    blocks: tuple[int, ...] | None = None
    """Of fpn and upernet: the four whose maps the decoder is given, counted from 1."""
    rescale: bool | None = None
    """Of fpn and upernet: give the decoder a pyramid of strides 4 to 32 of a ViT, or its maps as they are."""
    normed: bool | None = None
    """Of fpn and upernet: put the network's final norm on every map."""
    channels: int | None = None
    """Of fpn and upernet: width of the decoder; 0: that of the ViT."""
    auxiliary_channels: int | None = None
    """Of upernet: width of the auxiliary head."""
    test: Literal["slide", "whole", "square"] | None = None
    """How a test image is seen."""
    stride: int | None = None
    """Of fpn and upernet, with test slide: from one window to the next, in pixels; None: 2/3 of the crop."""
    precision: Literal["float32", "bf16"] | None = None
    """Of fpn and upernet."""
    resolution: int | None = None
    """Short side of whole images in pixels: knn 512, logistic and kmeans 320."""
    memory_patches: int | None = None
    """At most so many patches are remembered by knn or fitted by logistic (1,000,000), or clustered by kmeans
    (200,000)."""
    k: int | None = None
    """Patches that vote, in knn: 30."""
    temperature: float | None = None
    """Of the attention over them: 0.02."""
    max_memory: int | None = None
    """MB that the cosines of patches may take at once in knn: 128. Throughput and memory only."""
    iterations: int | None = None
    """Of kmeans, at most: 50; of logistic: 100."""
    restarts: int | None = None
    """Of kmeans, the best of which is taken: 3."""
