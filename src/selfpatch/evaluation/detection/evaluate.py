"""Mask R-CNN trained on a COCO data set, and its average precision.

::

    network = Mask R-CNN(copy of the backbone)
    for each step: augmented images, boxes, masks -> losses -> AdamW
    for each image of the other split: boxes, masks -> results files -> pycocotools
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from selfpatch.core.distributed import gather, is_main_process
from selfpatch.core.types import Encoder
from selfpatch.evaluation.detection.augmentation import whole
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import AnnotatedImage, Split, open_split
from selfpatch.evaluation.detection.masks import paste, pycocotools
from selfpatch.evaluation.detection.metrics import GroundTruth, average_precision, recall_per_image
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.predictions import Detections, Detector, detect_all, save
from selfpatch.evaluation.detection.training import build_network, train
from selfpatch.evaluation.detection.visualize import save_pictures
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result
from selfpatch.ops.images import normalise


def evaluate(encoder: Encoder, data: str | Path, config: DetectionConfig, output: Output = NO_OUTPUT) -> Result:
    """Train Mask R-CNN on one split, and measure the average precision of boxes and masks on another.

    `registry.Evaluate` explains the arguments. The encoder is a network of this package, whose backbone is copied and
    fine-tuned. A stopped evaluation continues in the folder, and a finished training there is scored on another split.

    Raises:
        ValueError: the encoder has no backbone to train, the data cannot be used, the categories of the splits differ,
            settings do not go together, or the folder holds another training.
    """
    pycocotools("mask")  # a missing package is reported now, not after the training
    train_split, test_split = _open_splits(data, config)
    config = replace(config, batch_size=min(config.batch_size, len(train_split.images)))
    # Reading the truth now reports its errors before hours of training.
    truth = GroundTruth(test_split.annotations, [image.id for image in test_split.images])
    network = build_network(encoder, len(train_split.category_ids), config)
    resolved = {
        "blocks": list(getattr(network.pyramid, "blocks", ())), "strides": list(network.pyramid.strides),
        "rate": config.scaled_lr,
    }  # fmt: skip
    identity = config.training_settings() | resolved | {
        "training data": train_split.fingerprint(), "network": encoder_identity(encoder),
    }  # fmt: skip
    train(network, encoder, train_split, config, settings=identity, output=output)
    boxes, masks = detect_all(as_detector(network, encoder, config), test_split, output.progress)
    pictures: list[str] = []
    if output.folder is not None and is_main_process():
        save(output.folder, boxes, masks)
        pictures = save_pictures(output.folder, test_split, boxes, masks, config.max_pictures)
    metrics, rows = average_precision(test_split, boxes, masks, truth)
    settings = config.recorded() | resolved | {
        "data": str(data), "train_images": len(train_split.images), "test_images": len(test_split.images),
        "categories": len(test_split.category_ids),
    }  # fmt: skip
    per_image = recall_per_image(test_split, boxes)
    return Result("detect", metrics, rows, settings, pictures=gather(pictures), per_image=per_image)


def as_detector(network: MaskRCNN, encoder: Encoder, config: DetectionConfig) -> Detector:
    """Return a function that detects objects in an image of any size, boxes and masks in the image's own pixels."""

    @torch.no_grad()
    def detector(annotated: AnnotatedImage) -> Detections:
        placement = whole(annotated.width, annotated.height, max(config.short_sides), config.long_side)
        pixels = torch.from_numpy(np.array(placement.image(annotated.read()))).permute(2, 0, 1)
        image = normalise(pixels.to(encoder.device), encoder.mean, encoder.std)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            (found,) = network.detect([image])
        scale = torch.tensor([annotated.width / placement.width, annotated.height / placement.height] * 2)
        boxes = found["boxes"].float().cpu() * scale
        masks = paste(found["masks"], boxes, annotated.height, annotated.width)
        return Detections(boxes, found["labels"].cpu(), found["scores"].float().cpu(), masks)

    return detector


def _open_splits(data: str | Path, config: DetectionConfig) -> tuple[Split, Split]:
    """Return the splits to train on and to score.

    Raises:
        ValueError: the splits list different categories, or one of them has no object.
    """
    train_split = open_split(data, config.train_split)
    is_same = config.test_split == config.train_split
    test_split = train_split if is_same else open_split(data, config.test_split)
    if train_split.category_ids != test_split.category_ids:
        differing = sorted(set(train_split.category_ids) ^ set(test_split.category_ids))
        raise ValueError(
            f"{train_split.annotations.name} and {test_split.annotations.name} list other categories (id "
            f"{differing[0]} is in one only); both splits need the same"
        )
    train_split, test_split = train_split.first(config.limit), test_split.first(config.limit)
    if not any(image.objects() for image in test_split.images):
        raise ValueError(f"{test_split.annotations} annotates no object in the images used; there is nothing to score")
    with_objects = train_split.with_objects()
    return train_split if config.negatives else with_objects, test_split
