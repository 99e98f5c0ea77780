"""Every constant of every published preset, as released."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfpatch.evaluation.detection import proposals, roi_heads, training
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.losses import GIOU_EPS, GIOU_WEIGHT
from selfpatch.evaluation.detection.roi_heads import STAGES
from selfpatch.evaluation.detection.samples import ANCHOR_IOUS, POSITIVE_SHARE
from selfpatch.evaluation.detection.training import build_network
from tests.helpers.detect_data import tiny_encoder

MULTI_SCALE = tuple(range(480, 801, 32))
COLUMNS = ("selfpatch", "ibot", "ibot_small", "resnet", "vitdet-simple")
TABLE: dict[str, tuple[Any, ...]] = {
    "detector":          ("mask-rcnn", "cascade", "cascade", "mask-rcnn", "mask-rcnn"),
    "pyramid":           ("inner-maps", "inner-maps", "inner-maps", "inner-maps", "last-map"),
    "blocks":            (None, None, None, None, None),
    "heads":             ("linear", "convolutional", "convolutional", "convolutional", "convolutional"),
    "rpn_depth":         (1, 1, 1, 1, 2),
    "box_norm":          ("none", "batch", "batch", "batch", "layer"),
    "mask_norm":         ("none", "none", "none", "batch", "layer"),
    "pyramid_norm":      ("none", "none", "none", "batch", "none"),
    "train_batch_norms": (False, False, False, True, False),
    "precise_bn":        (0, 0, 0, 200, 0),
    "width":             (256, 256, 256, 256, 256),
    "anchor_scale":      (8.0, 8.0, 8.0, 8.0, 8.0),
    "min_anchor_iou":    (0.3, 0.3, 0.3, 0.0, 0.0),
    "anchors_inside":    (False, True, True, False, False),
    "proposals":         (1000, 1000, 1000, 1000, 1000),
    "train_proposals":   (None, 2000, 2000, None, None),
    "rois":              (512, 512, 512, 512, 512),
    "rpn_loss":          ("l1", "smooth-l1", "smooth-l1", "l1", "l1"),
    "box_loss":          ("l1", "giou", "giou", "l1", "l1"),
    "augmentation":      ("multi-scale", "multi-scale", "multi-scale", "resize", "large-scale-jitter"),
    "short_sides":       (MULTI_SCALE, MULTI_SCALE, MULTI_SCALE, tuple(range(640, 801, 32)), (1024,)),
    "long_side":         (1333, 1333, 1333, 1333, 1024),
    "batch_size":        (8, 16, 32, 16, 64),
    "warmup_steps":      (1000, 500, 500, 1000, 250),
    "optimizer":         ("adamw", "adamw", "adamw", "sgd", "adamw"),
    "scaled_lr":         (5e-5, 1e-4, 1e-4, 0.02, 1e-4),
    "weight_decay":      (0.05, 0.05, 0.05, 1e-4, 0.1),
    "weight_decay_on":   ("all_but_norms", "matrices", "matrices", "all_but_norms", "all_but_norms"),
    "layer_decay":       (1.0, 0.75, 0.8, 1.0, 0.7),
    "drop_path":         (0.05, 0.2, 0.1, 0.0, 0.1),
    "clip":              (0.0, 0.0, 0.0, 0.0, 0.0),
    "negatives":         (False, False, False, False, False),
    "limit":             (None, None, None, None, None),
}  # fmt: skip
SCHEDULES = {
    "selfpatch": (117_266 // 8, 12 * (117_266 // 8), (8 * (117_266 // 8), 11 * (117_266 // 8))),
    "ibot": (7329, 12 * 7329, (8 * 7329, 11 * 7329)),
    "ibot_small": (117_266 // 32, 12 * (117_266 // 32), (8 * (117_266 // 32), 11 * (117_266 // 32))),
    "resnet": (7329, 90_000, (60_000, 80_000)),
}
"""Steps per epoch on COCO train2017, steps in all, and the steps at which the learning rate falls."""


@pytest.mark.parametrize("preset", COLUMNS)
def test_a_preset_has_the_published_settings(preset: str) -> None:
    config = DetectionConfig.from_settings({"preset": preset})
    column = COLUMNS.index(preset)
    expected = {name: values[column] for name, values in TABLE.items()}
    assert {name: getattr(config, name) for name in TABLE} == expected
    pinned = {*TABLE, "lr", "lr_batch", "epochs", "decay_at"}
    ours = {"preset", "train_split", "test_split", "precision", "seed", "workers", "max_pictures"}
    assert {*config.recorded(), "workers", "max_pictures"} == pinned - {"scaled_lr"} | ours


@pytest.mark.parametrize("preset", SCHEDULES)
def test_a_preset_has_the_published_schedule(preset: str) -> None:
    config = DetectionConfig.from_settings({"preset": preset})
    per_epoch, steps, falls = SCHEDULES[preset]
    assert round(config.epochs * per_epoch) == steps
    factors = {step: config.lr_factor(step, steps) for fall in falls for step in (fall - 1, fall)}
    assert list(factors.values()) == pytest.approx([1, 0.1, 0.1, 0.01])
    warmup = config.warmup_steps
    expected = [0.001, 0.001 + 0.999 / 2, 1.0]
    assert [config.lr_factor(step, steps) for step in (0, warmup // 2, warmup)] == pytest.approx(expected)


def test_constants_that_all_presets_share_are_as_released() -> None:
    assert (ANCHOR_IOUS, POSITIVE_SHARE, GIOU_WEIGHT, GIOU_EPS) == ((0.3, 0.7), 0.25, 10.0, 1e-6)
    assert (proposals.NUM_ANCHORS, proposals.RATIOS, proposals.NMS_IOU) == (256, (0.5, 1.0, 2.0), 0.7)
    assert (roi_heads.BOX_CELLS, roi_heads.MASK_CELLS, roi_heads.MASK_SIDE) == (7, 14, 28)
    assert (roi_heads.MIN_SCORE, roi_heads.NMS_IOU, roi_heads.MAX_DETECTIONS) == (0.05, 0.5, 100)
    assert training.MOMENTUM == 0.9
    assert STAGES["mask-rcnn"] == ((0.5, (0.1, 0.1, 0.2, 0.2), 1.0),)
    assert STAGES["cascade"] == (
        (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
        (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
        (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
    )


@pytest.mark.parametrize("preset", ["selfpatch", "ibot", "resnet"])
def test_the_network_of_a_preset_has_the_published_parts(preset: str) -> None:
    model = "resnet50" if preset == "resnet" else "vit_tiny"
    network = build_network(tiny_encoder(model), 80, DetectionConfig.from_settings({"preset": preset}))
    sides = [cell[1, 2:] - cell[1, :2] for cell in network.rpn.anchor_generator.cell_anchors]
    torch.testing.assert_close(torch.stack(sides), torch.tensor([[32.0], [64], [128], [256], [512]]).expand(5, 2))
    training_proposals = 2000 if preset == "ibot" else 1000
    assert network.rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert network.rpn._post_nms_top_n == {"training": training_proposals, "testing": 1000}
    assert network.rpn.beta == (1 / 9 if preset == "ibot" else 0.0)
    assert network.roi_heads.box_pool.levels.s0 == 224
    heads = network.roi_heads.stages[0]
    shapes = [tuple(p.shape) for name, p in heads.named_parameters() if p.ndim > 1 and name.startswith("box")]
    layers = [(1024, 256 * 49), (1024, 1024)]
    if preset != "selfpatch":
        layers = [*[(256, 256, 3, 3)] * 4, (1024, 256 * 49)]
    assert shapes == [*layers, (81, 1024), (4 * 81, 1024)]
    masks = [tuple(p.shape) for name, p in heads.named_parameters() if p.ndim > 1 and name.startswith("mask")]
    assert masks == [*[(256, 256, 3, 3)] * 4, (256, 256, 2, 2), (81, 256, 1, 1)]
