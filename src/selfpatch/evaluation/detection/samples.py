"""Training samples of a detector: which object a box belongs to, and which boxes are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from selfpatch.core.distributed import all_reduce_mean
from selfpatch.evaluation.detection.augmentation import Target

POSITIVE_SHARE = 0.25
"""Largest share of the sampled boxes that lies on objects."""
POSITIVE_ANCHORS = 0.5
"""Largest share of the sampled anchors that lies on objects."""
ANCHOR_IOUS = (0.3, 0.7)
"""IoU below which an anchor is background, and from which on it is on an object."""
IGNORED = -1.0
"""Label of an anchor that is not trained on."""


class TrainingTarget(Target):
    """Objects of one image, and the random generator that draws its training samples."""

    generator: torch.Generator
    """Generator on the CPU; one per image, so that draws do not depend on the batch around the image."""


@dataclass(frozen=True)
class BoxSamples:
    """Boxes of one image that a stage of heads is trained on."""

    boxes: Tensor
    """Boxes [n, 4]."""
    labels: Tensor
    """Labels of their objects, int64 [n]; 0 on the background."""
    matched: Tensor
    """Indices of their objects, int64 [n]; 0 if the image has none."""
    true_boxes: Tensor
    """Boxes of their objects [n, 4]; the boxes themselves if the image has no object."""
    is_object: Tensor
    """Boxes that are the objects' own, appended to the proposals: bool [n]."""

    def on_masks(self, masks: Tensor) -> Tensor:
        """Return the indices of boxes on objects that have a mask; `masks` are the objects', uint8 [objects, H, W]."""
        on_objects = torch.where(self.labels > 0)[0]
        has_mask = masks.flatten(1).bool().any(dim=1)  # [objects]
        return on_objects[has_mask[self.matched[on_objects]]]


def draw_balanced(labels: Tensor, num: int, positive_share: float, generator: torch.Generator) -> Tensor:
    """Return the indices of at most `num` samples, at most `positive_share` of them with a positive label.

    Samples of label 0 fill up the number; those with a negative label are left out.
    """
    on_objects = _draw(torch.where(labels > 0)[0], int(num * positive_share), generator)
    return torch.cat([on_objects, _draw(torch.where(labels == 0)[0], num - len(on_objects), generator)])


def _draw(indices: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if len(indices) <= most:
        return indices
    return indices[torch.randperm(len(indices), generator=generator)[:most].to(indices.device)]


def sample_boxes(proposals: Tensor, target: TrainingTarget, min_iou: float, num: int) -> BoxSamples:
    """Return the boxes of one image to train a stage on, out of its proposals and its objects' own boxes.

    ::

        for each box: its object is the one with the largest IoU, if that is at least `min_iou`;
                      other boxes are background
        draw `num` of them, at most a quarter on objects

    Args:
        proposals: boxes [n, 4].
        target: objects of the image.
        min_iou: smallest IoU of a box with its object.
        num: number of boxes to draw, fewer if there are fewer.
    """
    objects, device = target["boxes"].to(proposals), proposals.device
    boxes = torch.cat([proposals, objects])
    is_object = torch.arange(len(boxes), device=device) >= len(proposals)
    labels, matched = torch.zeros(2, len(boxes), dtype=torch.int64, device=device)
    true_boxes = boxes
    if len(objects):
        overlap, matched = box_iou(objects, boxes).max(dim=0)
        labels = torch.where(overlap >= min_iou, target["labels"][matched], 0)
        true_boxes = objects[matched]
    chosen = draw_balanced(labels, num, POSITIVE_SHARE, target["generator"])
    return BoxSamples(boxes[chosen], labels[chosen], matched[chosen], true_boxes[chosen], is_object[chosen])


def label_anchors(
    anchors: Tensor, target: TrainingTarget, *, min_best_iou: float, inside_only: bool, num: int
) -> tuple[Tensor, Tensor]:
    """Return the labels [n] of one image's anchors (1 on objects, 0 on the background, `IGNORED`), and their objects.

    ::

        for each anchor: 1 if its largest IoU with an object is at least 0.7, 0 if it is below 0.3, else ignored
        for each object: the anchors with the largest IoU are 1, if that is at least `min_best_iou`
        draw `num` of them, at most a half on objects; the others are ignored

    Args:
        anchors: anchors [n, 4].
        target: objects of the image, with masks of the image's size.
        min_best_iou: smallest IoU of the best anchors of an object.
        inside_only: ignore anchors that reach out of the image.
        num: number of anchors to draw.

    Returns:
        Labels, float32 [n], and the boxes of the best objects [n, 4], 0 if there are none.
    """
    height, width = target["masks"].shape[-2:]
    limits = anchors.new_tensor([width, height])
    usable = anchors.new_ones(len(anchors), dtype=torch.bool)
    if inside_only:
        usable = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] < limits).all(dim=1)
    labels, true_boxes = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
    objects = target["boxes"].to(anchors)
    if len(objects):
        overlap = box_iou(objects, anchors).where(usable, -1.0)  # [objects, anchors]
        largest, matched = overlap.max(dim=0)
        best = overlap.amax(dim=1, keepdim=True)
        is_best = (overlap == best) & (best >= min_best_iou) & (best > 0)
        labels = labels.where(largest < ANCHOR_IOUS[0], IGNORED)
        labels = labels.where(largest < ANCHOR_IOUS[1], 1.0).where(~is_best.any(dim=0), 1.0)
        true_boxes = objects[matched]
    labels = labels.where(usable, IGNORED)
    chosen = draw_balanced(labels, num, POSITIVE_ANCHORS, target["generator"])
    return torch.full_like(labels, IGNORED).index_copy(0, chosen, labels[chosen]), true_boxes


def mean_count(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return the sum of the counts, as the mean over processes and at least 1.

    Divided by it, sums of losses average over processes to the mean over the global batch.
    """
    return all_reduce_mean(torch.tensor(float(sum(counts)), device=device)).clamp(min=1.0)
