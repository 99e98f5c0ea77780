"""The parts of Mask R-CNN that differ from torchvision's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from selfpatch.evaluation.detection.augmentation import Target
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.losses import mask_loss, mask_targets
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.proposals import StridedAnchors
from selfpatch.evaluation.detection.roi_heads import PyramidPool
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


def test_anchors_stand_the_true_stride_apart() -> None:
    """Those of torchvision would be 3 pixels apart where the stride is 3.5."""
    anchors = StridedAnchors((3.5, 7.0), 8)
    maps = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    (found,) = anchors(ImageList(torch.zeros(1, 3, 14, 21), [(14, 21)]), maps)
    centres = (found[:, :2] + found[:, 2:]) / 2
    first, second = centres[: 4 * 6 * 3].view(4, 6, 3, 2), centres[4 * 6 * 3 :].view(2, 3, 3, 2)
    for grid, stride in ((first, 3.5), (second, 7.0)):
        rows, columns = torch.meshgrid(*(torch.arange(side) * stride for side in grid.shape[:2]), indexing="ij")
        for ratio in range(3):
            torch.testing.assert_close(grid[:, :, ratio], torch.stack([columns, rows], dim=-1), atol=1e-5, rtol=0)


def test_anchors_have_the_exact_area_and_ratio() -> None:
    """Those of torchvision are rounded to pixels."""
    anchors = StridedAnchors((4.0,), 8).cell_anchors[0]
    widths, heights = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    torch.testing.assert_close(widths * heights, torch.full((3,), 32.0**2))
    torch.testing.assert_close(heights / widths, torch.tensor([0.5, 1.0, 2.0]))


def test_boxes_are_pooled_from_the_level_of_their_size_in_their_order() -> None:
    strides = (4.0, 8.0, 16.0, 32.0)
    pool = PyramidPool(strides, 3, 224)
    boxes = torch.tensor([[0.0, 0, 300, 300], [5, 5, 25, 30], [0, 0, 500, 490], [10, 20, 150, 170]])
    assert pool.levels([boxes]).tolist() == [2, 0, 3, 1]
    maps = {str(i): torch.randn(2, 5, int(512 / s), int(512 / s)) for i, s in enumerate(strides)}
    pooled = pool(maps, [boxes[:1], boxes[1:]])
    for row, (image, level) in enumerate([(0, 2), (1, 0), (1, 3), (1, 1)]):
        roi = torch.cat([torch.tensor([float(image)]), boxes[row]])[None]
        alone = roi_align(maps[str(level)], roi, (3, 3), 1 / strides[level], -1, aligned=True)
        assert torch.equal(pooled[row], alone[0])


def test_mask_targets_are_the_mask_seen_through_the_box() -> None:
    masks = torch.zeros(2, 40, 50, dtype=torch.uint8)
    masks[1, 8:22, 10:24] = 1
    boxes = torch.tensor([[10.0, 8.0, 38.0, 36.0], [3.0, 1.0, 31.0, 29.0]])
    targets = mask_targets(masks, boxes, torch.tensor([1, 1]), 28)
    assert torch.equal(targets[0], masks[1, 8:36, 10:38].float())
    assert torch.equal(targets[1], masks[1, 1:29, 3:31].float())
    assert mask_targets(masks, boxes[:0], torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)


def test_no_box_on_an_object_costs_nothing_but_keeps_the_gradient() -> None:
    logits = torch.zeros(0, 3, 28, 28, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0


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
