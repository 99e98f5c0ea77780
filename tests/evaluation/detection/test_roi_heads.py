"""Heads of the stages: what each is trained on, how boxes pass on, and an oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from selfpatch.evaluation.detection import roi_heads
from selfpatch.evaluation.detection.augmentation import place_objects, whole
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import AnnotatedImage, open_split
from selfpatch.evaluation.detection.evaluate import as_detector
from selfpatch.evaluation.detection.losses import mask_targets
from selfpatch.evaluation.detection.metrics import average_precision
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.predictions import Detections, detect_all
from selfpatch.evaluation.detection.roi_heads import PyramidPool
from selfpatch.evaluation.detection.samples import BoxSamples, TrainingTarget, sample_boxes
from selfpatch.evaluation.detection.training import build_network
from tests.helpers.boxes import moved, offsets
from tests.helpers.detect_data import tiny_encoder

SMALL = DetectionConfig.from_settings({"preset": "small", "width": 8, "proposals": 20, "rois": 16})
CASCADE = replace(SMALL, detector="cascade", box_loss="giou", heads="convolutional", box_norm="batch")
STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
OBJECTS = torch.tensor([[5.0, 5.0, 30.0, 40.0], [20.0, 10.0, 60.0, 44.0]])
PROPOSALS = torch.tensor(
    [[6.0, 4.0, 28.0, 41.0], [22.0, 8.0, 57.0, 47.0], [40.0, 0.0, 60.0, 20.0], [0.0, 0.0, 9.0, 9.0]]
)


def target() -> TrainingTarget:
    masks = torch.zeros(2, 50, 70, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, OBJECTS.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    generator = torch.Generator().manual_seed(0)
    return {"boxes": OBJECTS, "labels": torch.tensor([1, 2]), "masks": masks, "generator": generator}


def cascade(**settings: Any) -> MaskRCNN:
    network = build_network(tiny_encoder(), 3, replace(CASCADE, **settings)).train()
    with torch.no_grad():  # as initialised, boxes hardly move and classes are equally likely
        for heads in network.roi_heads.stages:
            heads.box_predictor.bbox_pred.weight.mul_(100.0)
            heads.box_predictor.cls_score.weight.mul_(100.0)
    return network


def maps(network: MaskRCNN) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {str(level): one for level, one in enumerate(network.pyramid(torch.randn(1, 3, 64, 96)))}


def test_each_stage_is_trained_at_its_iou_on_the_boxes_that_the_stage_before_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[Tensor, float, BoxSamples]] = []
    predictions: list[tuple[Tensor, Tensor]] = []

    def spied(proposals: Tensor, one: TrainingTarget, min_iou: float, num: int) -> BoxSamples:
        samples = sample_boxes(proposals, one, min_iou, num)
        calls.append((proposals, min_iou, samples))
        return samples

    monkeypatch.setattr(roi_heads, "sample_boxes", spied)
    network = cascade()
    for heads in network.roi_heads.stages:
        predict = heads.boxes
        monkeypatch.setattr(
            heads, "boxes", lambda x, predict=predict: predictions.append(predict(x)) or predictions[-1]
        )
    network.roi_heads.losses(maps(network), [PROPOSALS], [(50, 70)], [target()])
    assert [min_iou for _, min_iou, _ in calls] == [0.5, 0.6, 0.7]
    assert torch.equal(calls[0][0], PROPOSALS)
    for (_, _, samples), (logits, moves), stds, (passed_on, _, _) in zip(
        calls[:2], predictions, STDS, calls[1:], strict=False
    ):
        expected = []
        for row in range(len(samples.boxes)):
            label = int(samples.labels[row]) or 1 + int(logits[row, 1:].argmax())
            left, top, right, bottom = moved(samples.boxes[row].tolist(), moves[row, label].tolist(), stds)
            if not samples.is_object[row]:
                expected.append([max(left, 0.0), max(top, 0.0), min(right, 70.0), min(bottom, 50.0)])
        clipped = torch.tensor(expected).clamp(min=0).minimum(torch.tensor([70.0, 50.0, 70.0, 50.0]))
        torch.testing.assert_close(passed_on, clipped, atol=1e-3, rtol=1e-4)
        assert not passed_on.requires_grad


def test_losses_of_the_stages_weigh_1_a_half_and_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    network = cascade()
    features = maps(network)
    losses = network.roi_heads.losses(features, [PROPOSALS], [(50, 70)], [target()])
    network.roi_heads.constants = tuple(stage._replace(weight=1.0) for stage in network.roi_heads.constants)
    unweighted = network.roi_heads.losses(features, [PROPOSALS], [(50, 70)], [target()])
    assert len(losses) == 9
    for name, value in losses.items():
        weight = {"1": 1.0, "2": 0.5, "3": 0.25}[name[5]]
        assert value.item() == pytest.approx(weight * unweighted[name].item(), rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_losses_of_a_stage_train_its_heads_and_the_pyramid_only(stage: int) -> None:
    network = cascade()
    losses = network.roi_heads.losses(maps(network), [PROPOSALS], [(50, 70)], [target()])
    torch.stack([value for name, value in losses.items() if name.startswith(f"stage{stage}")]).sum().backward()
    for number, heads in enumerate(network.roi_heads.stages, start=1):
        learned = [parameter.grad is not None for parameter in heads.parameters()]
        assert all(learned) if number == stage else not any(learned)
    assert network.pyramid.backbone.trunk.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_detection_averages_logits_and_masks_over_stages() -> None:
    network = cascade().eval()
    heads = network.roi_heads
    with torch.no_grad():
        features = maps(network)
        heads.min_score = 0.0
        (found,) = heads.detect(features, [PROPOSALS], [(50, 70)])
        boxes, all_logits = PROPOSALS, []
        for number, stage in enumerate(heads.stages):
            logits, moves = stage.boxes(heads.box_pool(features, [boxes]))
            all_logits.append(logits)
            placed = [
                [moved(box, move, STDS[number]) for move in row]
                for box, row in zip(boxes.tolist(), moves.tolist(), strict=True)
            ]
            limits = torch.tensor([70.0, 50.0, 70.0, 50.0])
            everywhere = torch.tensor(placed).clamp(min=0).minimum(limits)  # [proposals, classes, 4]
            boxes = everywhere[torch.arange(len(boxes)), logits[:, 1:].argmax(dim=1) + 1]
        scores = (sum(all_logits) / 3).softmax(dim=1)  # type: ignore[union-attr]
        assert len(found["boxes"])
        for box, score, label, mask in zip(
            found["boxes"], found["scores"], found["labels"], found["masks"], strict=True
        ):
            row = (everywhere[:, label] - box).abs().amax(dim=1).argmin()
            torch.testing.assert_close(everywhere[row, label], box, atol=1e-3, rtol=0)
            torch.testing.assert_close(scores[row, label], score, atol=1e-5, rtol=0)
            pooled = heads.mask_pool(features, [box[None]])
            expected = torch.stack([stage.masks(pooled)[0, label].sigmoid() for stage in heads.stages]).mean(dim=0)
            torch.testing.assert_close(mask, expected)


def perfect(network: MaskRCNN, size: tuple[int, int], objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what the network predicts in an image of this size by the truth, starting from boxes that are off."""
    height, width = size
    true_boxes, labels = objects["boxes"], objects["labels"]
    shift = torch.randn(len(true_boxes), 4, generator=torch.Generator().manual_seed(0))
    limits = torch.tensor([width, height, width, height])
    proposals = (true_boxes + 2 * shift).clamp(min=0).minimum(limits)
    monkeypatch.setattr(network.rpn, "forward", lambda *_: ([proposals], {}))
    heads = network.roi_heads
    monkeypatch.setattr(heads.box_pool, "forward", lambda _, boxes: torch.cat(boxes))
    monkeypatch.setattr(heads.mask_pool, "forward", lambda _, boxes: torch.cat(boxes))
    for stage, stds in zip(heads.stages, STDS, strict=False):

        def boxes(features: Tensor, stds: tuple[float, ...] = stds) -> tuple[Tensor, Tensor]:
            logits, moves = torch.zeros(len(features), 4), torch.zeros(len(features), 4, 4)
            matched = box_iou(features, true_boxes).argmax(dim=1)
            for row, one in enumerate(matched.tolist()):
                logits[row, labels[one]] = 20.0
                offset = offsets(features[row].tolist(), true_boxes[one].tolist(), stds)
                moves[row, labels[one]] = torch.tensor(offset)
            return logits, moves

        def masks(features: Tensor) -> Tensor:
            matched = box_iou(features, true_boxes).argmax(dim=1)
            seen = mask_targets(objects["masks"], features, matched, 28)
            return (20 * seen - 10)[:, None].expand(-1, 4, -1, -1)

        monkeypatch.setattr(stage, "boxes", boxes)
        monkeypatch.setattr(stage, "masks", masks)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
@pytest.mark.parametrize("detector", ["mask-rcnn", "cascade"])
def test_true_predictions_give_an_ap_of_1(coco_data: Path, detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools.coco")
    config = replace(SMALL, detector=detector)
    encoder, split = tiny_encoder(), open_split(coco_data, "val")
    network = build_network(encoder, 3, config).eval()
    detector_of_network = as_detector(network, encoder, config)

    def detect(image: AnnotatedImage) -> Detections:
        if not image.objects():
            return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), [])
        placement = whole(image.width, image.height, max(config.short_sides), config.long_side)
        objects = place_objects(image.objects(), image.width, image.height, placement)
        perfect(network, (placement.height, placement.width), objects, monkeypatch)
        return detector_of_network(image)

    metrics, _ = average_precision(split, *detect_all(detect, split))
    assert metrics["box AP"] == pytest.approx(1.0)
    assert metrics["mask AP50"] == pytest.approx(1.0)


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
