"""Training: learning rates of layers, and objects without masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfpatch.evaluation.detection.augmentation import place_objects, whole
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.evaluate import evaluate
from selfpatch.evaluation.detection.network import (
    _on_masks,
)
from selfpatch.evaluation.detection.training import build_network
from selfpatch.evaluation.finetuning import layer_groups
from tests.helpers.detect_data import (
    QUICK,
    change,
    tiny_encoder,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
SMALL = DetectionConfig.from_settings({"preset": "small", "width": 8, "proposals": 20, "rois": 8})


def test_layers_nearer_to_the_image_learn_more_slowly() -> None:
    config = replace(SMALL, layer_decay=0.5, lr=1.0, batch_size=1, lr_batch=1, weight_decay=0.1)
    network = build_network(tiny_encoder(), 3, config)
    names = {parameter: name for name, parameter in network.named_parameters()}
    rates = {"lr": config.scaled_lr, "layer_decay": config.layer_decay, "weight_decay": config.weight_decay}
    of = {
        names[p]: (group["lr"], group["weight_decay"])
        for group in layer_groups(network, network.pyramid.backbone, **rates)
        for p in group["params"]
    }
    assert len(of) == len(names)
    assert of["pyramid.backbone.trunk.blocks.3.mlp.fc1.weight"] == (0.5, 0.1)
    assert of["pyramid.backbone.trunk.blocks.0.mlp.fc1.weight"] == (0.5**4, 0.1)
    assert of["pyramid.backbone.trunk.pos_embed"] == (0.5**5, 0.0)
    assert of["pyramid.backbone.trunk.blocks.3.mlp.fc1.bias"] == (0.5, 0.0)
    assert of["roi_heads.box_head.fc6.weight"] == (1.0, 0.1)


def test_an_object_with_a_box_only_is_learned_without_mask(data: Path) -> None:
    change(data, "train", segmentation=[])
    image = open_split(data, "train").images[0]
    target = place_objects(image.objects(), 64, 48, whole(64, 48, 48, 64))
    assert len(target["boxes"]) == 3
    assert [bool(mask.any()) for mask in target["masks"]] == [False, True, True]
    matched = torch.tensor([0, 1, 0, 2, 1])
    assert _on_masks(target["masks"], torch.tensor([0, 1, 3]), matched).tolist() == [1, 3]
    assert 0 <= evaluate(tiny_encoder(), data, DetectionConfig.from_settings(QUICK)).metrics["box AP"] <= 1
