"""Mask R-CNN and its cascade on every backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from selfpatch.evaluation.detection.augmentation import Target
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.training import build_network
from tests.helpers.detect_data import (
    tiny_encoder,
)

NETWORK = (
    "detector", "pyramid", "heads", "rpn_depth", "box_norm", "mask_norm", "pyramid_norm", "train_batch_norms",
    "box_loss", "rpn_loss", "anchors_inside",
)  # fmt: skip
"""Settings of a preset that choose the parts of the network and its losses."""
SMALL = DetectionConfig.from_settings({"preset": "small", "width": 8, "proposals": 20, "rois": 8})


def target(boxes: list[list[float]], size: tuple[int, int]) -> Target:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = 1
    labels = torch.arange(1, len(boxes) + 1)
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": labels, "masks": masks}


STAGE_LOSSES = {"classes", "boxes", "masks"}


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("vit_tiny", "selfpatch"), ("swin_tiny", "selfpatch"), ("resnet50", "selfpatch"), ("vit_tiny", "ibot"),
        ("swin_tiny", "ibot_small"), ("resnet50", "resnet"), ("vit_tiny", "vitdet-simple"),
    ],
)  # fmt: skip
def test_every_parameter_of_the_heads_learns_and_images_without_objects_are_learned_from(
    model: str, preset: str
) -> None:
    published = DetectionConfig.from_settings({"preset": preset})
    config = replace(SMALL, **{name: getattr(published, name) for name in NETWORK})
    network = build_network(tiny_encoder(model), 3, config).train()
    images = [torch.randn(3, 50, 70), torch.randn(3, 64, 40)]
    targets = [target([[5.0, 5.0, 30.0, 40.0], [20.0, 10.0, 60.0, 44.0]], (50, 70)), target([], (64, 40))]
    losses = network.losses(images, targets, [1, 2])
    stages = 3 if preset.startswith("ibot") else 1
    of_stages = {f"stage{stage}_{name}" for stage in range(1, stages + 1) for name in STAGE_LOSSES}
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", *of_stages}
    torch.stack(list(losses.values())).sum().backward()
    unused = [n for n, p in network.named_parameters() if p.grad is None and "trunk.norm" not in n]
    assert unused == []
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("preset", ["small", "ibot"])
def test_the_first_step_of_bfloat16_resembles_that_of_float32(preset: str) -> None:
    published = DetectionConfig.from_settings({"preset": preset})
    network = build_network(tiny_encoder(), 3, replace(SMALL, **{n: getattr(published, n) for n in NETWORK})).train()
    images, targets = [torch.randn(3, 64, 64)], [target([[5.0, 5.0, 30.0, 40.0]], (64, 64))]
    totals = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = network.losses(images, targets, [0])
        assert all(value.dtype == torch.float32 for value in losses.values())
        totals.append(torch.stack(list(losses.values())).sum().item())
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


@pytest.mark.parametrize("detector", ["mask-rcnn", "cascade"])
@pytest.mark.parametrize("size", [(1, 1), (30, 400)])
def test_detections_lie_in_the_image(size: tuple[int, int], detector: Any) -> None:
    network: MaskRCNN = build_network(tiny_encoder(), 3, replace(SMALL, detector=detector)).eval()
    network.roi_heads.min_score = 0.0
    with torch.no_grad():
        (found,) = network.detect([torch.randn(3, *size)])
    boxes = found["boxes"]
    assert len(boxes) == len(found["scores"]) == len(found["labels"]) == len(found["masks"])
    assert boxes.min() >= 0
    assert bool((boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all())
    assert found["masks"].shape[1:] == (28, 28)
