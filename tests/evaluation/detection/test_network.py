"""Pyramids of every backbone, and the parts of Mask R-CNN that are not torchvision's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from selfpatch.evaluation.detection.augmentation import Target
from selfpatch.evaluation.detection.config import PRESETS
from selfpatch.evaluation.detection.network import MaskRCNN, PyramidPool, StridedAnchors, mask_loss, mask_targets
from selfpatch.evaluation.detection.pyramid import InnerMaps, LastMap, padded
from selfpatch.evaluation.detection.training import build_network
from selfpatch.evaluation.finetuning import layer_groups
from selfpatch.evaluation.presets import resolve_preset
from tests.helpers.detect_data import tiny_encoder

SMALL = replace(PRESETS["small"], width=8, proposals=20, rois=8)


def vit(patch_size: int) -> Any:
    return tiny_encoder(patch_size=patch_size).backbone


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        (lambda: vit(8), (4, 8, 16, 32, 64)),
        (lambda: vit(14), (3.5, 7, 14, 28, 56)),
        (lambda: vit(16), (4, 8, 16, 32, 64)),
        (lambda: tiny_encoder("swin_tiny").backbone, (4, 8, 16, 32, 64)),
        (lambda: tiny_encoder("resnet50").backbone, (4, 8, 16, 32, 64)),
    ],
    ids=["patch 8", "patch 14", "patch 16", "swin", "resnet"],
)
@pytest.mark.parametrize("kind", [InnerMaps, LastMap])
def test_maps_have_the_strides_that_they_claim(backbone: Any, strides: tuple[float, ...], kind: type) -> None:
    backbone = backbone()
    if kind is LastMap and backbone.config.family != "vit":
        pytest.skip("the simple pyramid is for a ViT")
    pyramid = kind(backbone, width=8).train()
    assert pyramid.strides == strides
    images = torch.randn(2, 3, 2 * pyramid.multiple, 4 * pyramid.multiple)
    maps = pyramid(images)
    assert len(maps) == 5
    for one, stride in zip(maps, strides, strict=True):
        assert one.shape == (2, 8, 2 * pyramid.multiple / stride, 4 * pyramid.multiple / stride)


def test_the_published_adapter_takes_blocks_4_6_8_and_12() -> None:
    pyramid = InnerMaps(tiny_encoder(depth=12, embed_dim=16).backbone, width=8)
    assert pyramid.blocks == (4, 6, 8, 12)
    rescale = InnerMaps(vit(16), width=8).rescale
    assert rescale is not None
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in rescale.modules()) == 1


def test_a_pyramid_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="simple feature pyramid is for a plain ViT"):
        LastMap(tiny_encoder("swin_tiny").backbone)
    with pytest.raises(ValueError, match="blocks are for a plain ViT"):
        InnerMaps(tiny_encoder("resnet50").backbone, blocks=(1, 2, 3, 4))
    with pytest.raises(ValueError, match="give 4 of 1 to 4"):
        InnerMaps(vit(8), blocks=(1, 2, 3, 5))
    with pytest.raises(ValueError, match="has 2 stages"):
        InnerMaps(tiny_encoder("resnet50", depths=(1, 1)).backbone)


def test_a_resnet_is_trained_with_the_statistics_of_its_pre_training() -> None:
    pyramid = InnerMaps(tiny_encoder("resnet50").backbone, width=8)
    images = torch.randn(2, 3, 64, 64)
    learning, resting = (pyramid.train(mode).levels(images) for mode in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(learning, resting, strict=True))


def test_batches_are_padded_to_a_multiple() -> None:
    batch = padded([torch.ones(3, 20, 33), torch.ones(3, 41, 5)], 32)
    assert batch.shape == (2, 3, 64, 64)
    assert batch[0].sum() == 3 * 20 * 33
    assert batch[1, :, :41, :5].min() == 1
    assert padded([torch.ones(3, 20, 33)], 28, smallest=100).shape == (1, 3, 112, 112)


def test_anchors_stand_the_true_stride_apart() -> None:
    """Those of torchvision would be 3 pixels apart where the stride is 3.5."""
    anchors = StridedAnchors((3.5, 7.0), 8)
    maps = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    (found,) = anchors(ImageList(torch.zeros(1, 3, 14, 21), [(14, 21)]), maps)
    centres = (found[:, :2] + found[:, 2:]) / 2
    first, second = centres[: 4 * 6 * 3].view(4, 6, 3, 2), centres[4 * 6 * 3 :].view(2, 3, 3, 2)
    for grid, stride in ((first, 3.5), (second, 7.0)):
        assert torch.equal(grid[:, :, 0, 0], (torch.arange(grid.shape[1]) * stride).expand(grid.shape[:2]))
        assert torch.equal(grid[:, :, 0, 1], (torch.arange(grid.shape[0]) * stride)[:, None].expand(grid.shape[:2]))


def test_boxes_are_pooled_from_the_level_of_their_size_in_their_order() -> None:
    strides = (4.0, 8.0, 16.0, 32.0)
    pool = PyramidPool(strides, 3, 224)
    boxes = torch.tensor([[0.0, 0, 300, 300], [5, 5, 25, 30], [0, 0, 500, 490], [10, 20, 150, 170]])
    assert pool.levels(boxes).tolist() == [2, 0, 3, 1]
    maps = {str(i): torch.randn(2, 5, int(512 / s), int(512 / s)) for i, s in enumerate(strides)}
    pooled = pool(maps, [boxes[:1], boxes[1:]], [(512, 512), (512, 512)])
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


@pytest.mark.parametrize("preset", ["selfpatch", "vitdet-simple"])
@pytest.mark.parametrize("model", ["vit_tiny", "swin_tiny", "resnet50"])
def test_every_parameter_of_the_heads_learns_and_images_without_objects_are_learned_from(
    model: str, preset: str
) -> None:
    how = replace(SMALL, pyramid=PRESETS[preset].pyramid, heads=PRESETS[preset].heads)
    if preset == "vitdet-simple" and model != "vit_tiny":
        pytest.skip("the simple pyramid is for a ViT")
    network = build_network(tiny_encoder(model), 3, how).train()
    images = [torch.randn(3, 50, 70), torch.randn(3, 64, 40)]
    targets = [target([[5.0, 5.0, 30.0, 40.0], [20.0, 10.0, 60.0, 44.0]], (50, 70)), target([], (64, 40))]
    losses = network.losses(images, targets)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    torch.stack(list(losses.values())).sum().backward()
    unused = [n for n, p in network.named_parameters() if p.grad is None and "trunk.norm" not in n]
    assert unused == []
    assert all(torch.isfinite(value) for value in losses.values())


def test_the_first_step_of_bfloat16_resembles_that_of_float32() -> None:
    network = build_network(tiny_encoder(), 3, SMALL).train()
    images, targets = [torch.randn(3, 64, 64)], [target([[5.0, 5.0, 30.0, 40.0]], (64, 64))]
    totals = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = network.losses(images, targets)
        assert all(value.dtype == torch.float32 for value in losses.values())
        totals.append(torch.stack(list(losses.values())).sum().item())
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (30, 400)])
def test_detections_lie_in_the_image(size: tuple[int, int]) -> None:
    network: MaskRCNN = build_network(tiny_encoder(), 3, SMALL).eval()
    network.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = network.detect([torch.randn(3, *size)])
    boxes = found["boxes"]
    assert len(boxes) == len(found["scores"]) == len(found["labels"]) == len(found["masks"])
    assert boxes.min() >= 0
    assert bool((boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all())
    assert found["masks"].shape[1:] == (28, 28)


def test_the_learning_rate_follows_the_preset() -> None:
    how = resolve_preset(PRESETS, "selfpatch", batch_size=16)
    assert how.rate() == pytest.approx(1e-4)
    assert [how.factor(step, 12000) for step in (500, 7999, 8000, 11000)] == pytest.approx([1, 1, 0.1, 0.01])
    assert how.factor(0, 12000) == pytest.approx(0.001)


def test_layers_nearer_to_the_image_learn_more_slowly() -> None:
    how = replace(SMALL, layer_decay=0.5, lr=1.0, batch_size=1, lr_batch=1, weight_decay=0.1)
    network = build_network(tiny_encoder(), 3, how)
    names = {parameter: name for name, parameter in network.named_parameters()}
    rates = {"lr": how.rate(), "layer_decay": how.layer_decay, "weight_decay": how.weight_decay}
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"short_sides": ()}, "short_sides are"),
        ({"decay_at": (8.0,)}, "decay_at is"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_settings_that_make_no_training_are_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_preset(PRESETS, "selfpatch", **given)
    with pytest.raises(ValueError, match="there is no preset 'x'; use one of"):
        resolve_preset(PRESETS, "x")
