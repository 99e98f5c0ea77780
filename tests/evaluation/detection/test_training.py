"""Training: learning rates of layers, and objects without masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.evaluation.detection.augmentation import place_objects, whole
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.evaluate import evaluate
from selfpatch.evaluation.detection.samples import BoxSamples
from selfpatch.evaluation.detection.training import average_statistics, build_network, build_optimizer, train
from selfpatch.evaluation.result import NO_OUTPUT
from selfpatch.models.layers.batch_norm import BatchNorm, BatchNorm2d
from tests.helpers.detect_data import (
    QUICK,
    change,
    tiny_encoder,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
NETWORK = (
    "detector", "pyramid", "heads", "rpn_depth", "box_norm", "mask_norm", "pyramid_norm", "train_batch_norms",
    "box_loss", "optimizer", "weight_decay_on",
)  # fmt: skip
"""Settings of a preset that choose the parts of the network and of its optimizer."""
SMALL = DetectionConfig.from_settings({"preset": "small", "width": 8, "proposals": 20, "rois": 8})


@pytest.mark.parametrize("rule", ["all_but_norms", "matrices"])
def test_layers_nearer_to_the_image_learn_more_slowly(rule: Any) -> None:
    config = replace(SMALL, layer_decay=0.5, lr=1.0, batch_size=1, lr_batch=1, weight_decay=0.1, weight_decay_on=rule)
    network = build_network(tiny_encoder(), 3, config)
    names = {parameter: name for name, parameter in network.named_parameters()}
    of = {
        names[p]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(network, config).param_groups
        for p in group["params"]
    }
    assert len(of) == len(names)
    assert of["pyramid.backbone.trunk.blocks.3.mlp.fc1.weight"] == (0.5, 0.1)
    assert of["pyramid.backbone.trunk.blocks.0.mlp.fc1.weight"] == (0.5**4, 0.1)
    positions, biases = (0.0, 0.1) if rule == "all_but_norms" else (0.1, 0.0)
    assert of["pyramid.backbone.trunk.pos_embed"] == (0.5**5, positions)
    assert of["pyramid.backbone.trunk.blocks.3.mlp.fc1.bias"] == (0.5, biases)
    assert of["pyramid.backbone.trunk.blocks.3.norm1.weight"] == (0.5, 0.0)
    assert of["pyramid.backbone.trunk.blocks.3.norm1.bias"] == (0.5, 0.0)
    assert of["pyramid.rescale.levels.0.0.weight"] == (1.0, 0.1)
    assert of["pyramid.merge.inner_blocks.0.0.bias"] == (1.0, biases)
    assert of["roi_heads.stages.0.box_head.fc6.weight"] == (1.0, 0.1)


@pytest.mark.parametrize("preset", ["selfpatch", "ibot", "resnet", "vitdet-simple"])
def test_no_norm_decays(preset: str) -> None:
    published = DetectionConfig.from_settings({"preset": preset})
    settings = {name: getattr(published, name) for name in NETWORK}
    model = "resnet50" if preset == "resnet" else "vit_tiny"
    network = build_network(tiny_encoder(model), 3, replace(SMALL, **settings))
    optimizer = build_optimizer(network, replace(SMALL, **settings, weight_decay=0.1))
    kind = torch.optim.SGD if preset == "resnet" else torch.optim.AdamW
    assert type(optimizer) is kind
    decayed = {parameter for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]}
    norms = {p for m in network.modules() if isinstance(m, torch.nn.LayerNorm | BatchNorm) for p in m.parameters()}
    assert norms
    assert not norms & decayed
    tokens = {p for name, p in network.named_parameters() if name.endswith(("pos_embed", "cls_token"))}
    matrices = {p for p in network.parameters() if p.ndim > 1} - tokens
    others = tokens if preset == "ibot" else {p for p in network.parameters() if p.ndim == 1} - norms
    assert decayed == matrices | others


def test_an_object_with_a_box_only_is_learned_without_mask(data: Path) -> None:
    change(data, "train", segmentation=[])
    image = open_split(data, "train").images[0]
    target = place_objects(image.objects(), 64, 48, whole(64, 48, 48, 64))
    assert len(target["boxes"]) == 3
    assert [bool(mask.any()) for mask in target["masks"]] == [False, True, True]
    matched, labels, boxes = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([1, 1, 0, 1, 0]), torch.zeros(5, 4)
    assert BoxSamples(boxes, labels, matched, boxes, labels > 0).on_masks(target["masks"]).tolist() == [1, 3]
    assert 0 <= evaluate(tiny_encoder(), data, DetectionConfig.from_settings(QUICK)).metrics["box AP"] <= 1


def test_statistics_of_batch_norms_become_their_mean_over_batches() -> None:
    norm, unused, late = BatchNorm2d(2), BatchNorm2d(2), BatchNorm2d(2)
    batches = [torch.randn(3, 2, 4, 5) + number for number in range(5)]

    def forward(x: torch.Tensor) -> None:
        norm(x)
        if x.mean() > 2.5:
            late(x)

    average_statistics(torch.nn.ModuleList([norm, unused, late]), forward, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(late.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches[3:]]).mean(0))
    assert unused.running_mean is not None
    assert not unused.running_mean.any()
    assert norm.momentum == 0.1


def test_the_statistics_of_a_trained_resnet_are_those_of_its_last_weights(data: Path) -> None:
    settings = {**QUICK, "train_batch_norms": True, "limit": 2, "test_split": "train"}
    split, found = open_split(data, "train").first(2), []
    for steps in (0, 2, 2):
        config = DetectionConfig.from_settings({**settings, "precise_bn": steps})
        encoder = tiny_encoder("resnet50")
        network = build_network(encoder, 3, config)
        train(network, encoder, split, config, settings={}, output=NO_OUTPUT)
        assert not network.training
        found.append(network.state_dict())
    weights = [name for name in found[0] if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(found[0][name], found[1][name]) for name in weights)
    assert all(torch.equal(found[1][name], found[2][name]) for name in found[1])
    assert not torch.equal(*(one["pyramid.backbone.trunk.bn1.running_mean"] for one in found[:2]))


def test_statistics_of_batch_norms_depend_on_the_seed_alone(data: Path) -> None:
    """Drop path drew from the random state of the caller, which differs after a stop."""
    settings = {**QUICK, "heads": "convolutional", "box_norm": "batch", "precise_bn": 1, "drop_path": 0.5}
    split, config = open_split(data, "train").first(2), DetectionConfig.from_settings(settings)
    found = []
    for seed in (1, 2):
        encoder = tiny_encoder()
        network = build_network(encoder, 3, config)
        torch.manual_seed(seed)
        train(network, encoder, split, config, settings={}, output=NO_OUTPUT)
        assert torch.initial_seed() == seed
        found.append(network.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_norm": "batch"}, "box_norm is batch, but linear heads"),
        ({"pyramid": "last-map", "pyramid_norm": "batch"}, "pyramid_norm is for pyramid inner-maps"),
        ({"train_batch_norms": True}, "train_batch_norms is for a ResNet, and the network is a vit"),
    ],
)
def test_settings_of_absent_parts_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(tiny_encoder(), 3, replace(SMALL, **settings))
