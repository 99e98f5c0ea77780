"""Mask R-CNN trained on a COCO data set, and its average precision.

network = Mask R-CNN(copy of the backbone)
for each step: image, boxes, masks = augmented -> losses -> AdamW
for each image of the other split: boxes, masks -> results files -> pycocotools
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from selfpatch.core.types import Encoder
from selfpatch.evaluation.detection.augmentation import Augmentation, whole
from selfpatch.evaluation.detection.config import PRESETS, Preset, PresetName, PyramidName
from selfpatch.evaluation.detection.dataset import AnnotatedImage, Split, open_split
from selfpatch.evaluation.detection.masks import paste, pycocotools
from selfpatch.evaluation.detection.metrics import GroundTruth
from selfpatch.evaluation.detection.network import Heads, MaskRCNN
from selfpatch.evaluation.detection.predictions import Detections, Detector, Row, detect_all, save
from selfpatch.evaluation.detection.recall import recall_per_image
from selfpatch.evaluation.detection.training import build_network, train
from selfpatch.evaluation.detection.visualize import save_pictures
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.result import Cell, Progress, Provenance, Result, network_sha256
from selfpatch.ops.images import normalise

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    preset: PresetName = "selfpatch",
    train_split: str = "train2017",
    test_split: str = "val2017",
    limit: int | None = None,
    negatives: bool = False,
    pyramid: PyramidName | None = None,
    blocks: Sequence[int] | None = None,
    heads: Heads | None = None,
    width: int | None = None,
    anchor_scale: float | None = None,
    proposals: int | None = None,
    rois: int | None = None,
    augmentation: Augmentation | None = None,
    short_sides: Sequence[int] | None = None,
    long_side: int | None = None,
    batch_size: int | None = None,
    epochs: float | None = None,
    decay_at: Sequence[float] | None = None,
    warmup_steps: int | None = None,
    lr: float | None = None,
    lr_batch: int | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    clip: float | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    seed: int = 0,
    workers: int = 0,
    max_pictures: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """Trains Mask R-CNN on one split and gives the average precision of boxes and masks on another.

    Args:
        encoder: a network of ours; its backbone is copied and trained along.
        data: COCO tree: annotations/instances_SPLIT.json and a folder of images for each split.
        out: folder for checkpoints, results files, pictures and result.json. A stopped evaluation goes on there, and a
            finished training is scored on another split. None: nothing is written.
        preset: gives the settings that are None; see `presets.Preset` for each.
        train_split, test_split: names of the splits to train on and to score.
        limit: images of each split that are used, the first ones; None: all.
        negatives: train on images without objects too, which the published protocols leave out.
        blocks: of a ViT, whose maps are taken for pyramid inner-maps; None: at 1/3, 1/2, 2/3 and the end of its depth.
        precision: of the forward pass.
        seed: of initialisation, order and augmentation.
        workers: processes that load images.
        max_pictures: images of the scored split to draw with what is found in them, in the folder pictures.
        weights: what the encoder was made of, for the record.
        progress: called with `training` and steps, then with `detecting` and images.

    Raises:
        ValueError: the encoder has no backbone to train, the data cannot be used, the categories of both splits differ,
            settings do not go together, or `out` holds a training with other ones.
    """
    pycocotools("mask")  # so that its absence is told before an hour of training
    how = resolve_preset(
        PRESETS, preset, pyramid=pyramid, heads=heads, width=width, anchor_scale=anchor_scale, proposals=proposals,
        rois=rois, augmentation=augmentation, short_sides=short_sides, long_side=long_side, batch_size=batch_size,
        epochs=epochs, decay_at=decay_at, warmup_steps=warmup_steps, lr=lr, lr_batch=lr_batch,
        weight_decay=weight_decay, layer_decay=layer_decay, drop_path=drop_path, clip=clip,
    )  # fmt: skip
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; use one of: {', '.join(PRECISIONS)}")
    for name, number in (("seed", seed), ("workers", workers), ("max_pictures", max_pictures)):
        if number < 0:
            raise ValueError(f"{name} is {number}; use 0 or more")
    trained_on, scored = _open_splits(data, train_split, test_split, limit, negatives)
    truth = GroundTruth(scored.annotations, [image.id for image in scored.images])  # what is wrong is told before hours
    network = build_network(encoder, len(trained_on.category_ids), how, blocks=blocks, seed=seed)
    learned = {
        **asdict(how), "blocks": list(getattr(network.pyramid, "blocks", ())), "seed": seed, "precision": precision,
        "strides": list(network.pyramid.strides), "rate": how.rate(),
    }  # fmt: skip
    settings = {
        "preset": preset, **learned, "train_split": train_split, "test_split": test_split, "limit": limit,
        "negatives": negatives, "data": str(data), "train_images": len(trained_on.images),
        "test_images": len(scored.images), "categories": len(scored.category_ids),
    }  # fmt: skip
    identity = {
        **learned, "training data": trained_on.fingerprint(), "weights": network_sha256(network.pyramid.backbone),
        "mean": list(encoder.mean), "std": list(encoder.std),
    }  # fmt: skip
    folder = None if out is None else Path(out)
    train(
        network,
        encoder,
        trained_on,
        how,
        autocast=PRECISIONS[precision],
        seed=seed,
        workers=workers,
        settings=identity,
        out=folder,
        progress=progress,
    )
    detector = as_detector(network, encoder, how, PRECISIONS[precision])
    boxes, masks = detect_all(detector, scored, progress)
    drawn: list[str] = []
    if folder is not None:
        save(folder, boxes, masks)
        drawn = save_pictures(folder, scored, boxes, masks, max_pictures)
    metrics, rows = average_precision(scored, boxes, masks, truth)
    per_image = recall_per_image(scored, boxes)
    result = Result("detect", metrics, rows, settings, weights, pictures=drawn, per_image=per_image)
    if folder is not None:
        result.save(folder / "result.json")
    return result


def as_detector(network: MaskRCNN, encoder: Encoder, how: Preset, autocast: torch.dtype | None) -> Detector:
    """The network as what finds objects in one image of any size, boxes and masks in its own pixels."""

    @torch.no_grad()
    def detector(annotated: AnnotatedImage) -> Detections:
        placement = whole(annotated.width, annotated.height, max(how.short_sides), how.long_side)
        pixels = torch.from_numpy(np.array(placement.image(annotated.read()))).permute(2, 0, 1)
        image = normalise(pixels.to(encoder.device), encoder.mean, encoder.std)
        with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
            (found,) = network.detect([image])
        scale = torch.tensor([annotated.width / placement.width, annotated.height / placement.height] * 2)
        boxes = found["boxes"].float().cpu() * scale
        masks = paste(found["masks"], boxes, annotated.height, annotated.width)
        return Detections(boxes, found["labels"].cpu(), found["scores"].float().cpu(), masks)

    return detector


def average_precision(
    split: Split, boxes: Sequence[Row], masks: Sequence[Row], truth: GroundTruth | None = None
) -> tuple[dict[str, float], list[dict[str, Cell]]]:
    """The numbers to quote, and a row for each category that has objects; nan: none of them has a mask.

    Args:
        split: the images that count.
        boxes, masks: rows of results files.
        truth: of the split, where it is read already.
    """
    truth = truth or GroundTruth(split.annotations, [image.id for image in split.images])
    of_boxes, of_masks = truth.precision(boxes, "bbox"), truth.precision(masks, "segm")
    metrics = {f"box {name}": value for name, value in of_boxes.overall.items()}
    metrics |= {f"mask {name}": value for name, value in of_masks.overall.items()}
    names = dict(zip(split.category_ids, split.category_names, strict=True))
    rows: list[dict[str, Cell]] = [
        {
            "category": names[category],
            "objects": count,
            "box AP": of_boxes.of_category.get(category, math.nan),
            "mask AP": of_masks.of_category.get(category, math.nan),
        }
        for category, count in truth.objects().items()
    ]
    return metrics, rows


def _open_splits(
    data: str | Path, train_split: str, test_split: str, limit: int | None, negatives: bool
) -> tuple[Split, Split]:
    first = open_split(data, train_split)
    second = first if test_split == train_split else open_split(data, test_split)
    if first.category_ids != second.category_ids:
        odd = sorted(set(first.category_ids) ^ set(second.category_ids))
        raise ValueError(
            f"{first.annotations.name} and {second.annotations.name} list other categories (id {odd[0]} is in one "
            "only); both splits need the same"
        )
    trained_on, scored = first.first(limit), second.first(limit)
    if not any(image.objects() for image in scored.images):
        raise ValueError(f"{scored.annotations} annotates no object in the images used; there is nothing to score")
    learnable = trained_on.with_objects()
    return trained_on if negatives else learnable, scored
