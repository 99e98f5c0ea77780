"""Losses of the heads of a detector: offsets or generalised IoU of boxes, and cross-entropy of masks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import generalized_box_iou_loss, roi_align

from selfpatch.evaluation.detection.samples import BoxSamples, mean_count

GIOU_WEIGHT = 10.0
GIOU_EPS = 1e-6


def box_loss(kind: Literal["l1", "giou"], moves: Tensor, samples: Sequence[BoxSamples], coder: BoxCoder) -> Tensor:
    """Return the sum over boxes on objects of the loss of their boxes.

    - `l1`: absolute differences of the offsets to the object's box, summed over the four.
    - `giou`: 10 (1 - GIoU) of the moved box and the object's (arXiv 1902.09630).

    Args:
        kind: the loss.
        moves: predicted offsets [n, C, 4], the background first.
        samples: the n boxes, by image.
        coder: converts between offsets and boxes.
    """
    labels = torch.cat([one.labels for one in samples])
    on_objects = torch.where(labels > 0)[0]
    predicted = moves[on_objects, labels[on_objects]]
    boxes = torch.cat([one.boxes for one in samples])[on_objects]
    true_boxes = torch.cat([one.true_boxes for one in samples])[on_objects]
    if kind == "l1":
        return (predicted - coder.encode_single(true_boxes, boxes)).abs().sum()
    moved = coder.decode_single(predicted, boxes)
    return GIOU_WEIGHT * generalized_box_iou_loss(moved, true_boxes, reduction="sum", eps=GIOU_EPS)


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, cells: int) -> Tensor:
    """Return the part of its object's mask that each box [n, 4] covers, [n, cells, cells] of 0 and 1.

    `masks` are uint8 [objects, H, W] of one image, and `matched` [n] holds object indices.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, cells, cells)
    used, index = matched.unique(return_inverse=True)
    rois = torch.cat([index[:, None].to(boxes.dtype), boxes], dim=1)
    covered = roi_align(masks[used, None].to(boxes.dtype), rois, (cells, cells), 1.0, sampling_ratio=-1, aligned=True)
    return (covered[:, 0] >= 0.5).to(boxes.dtype)


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of the masks of the true classes; 0 if no box lies on an object.

    Logits are [n, classes, m, m], labels (true classes) [n], and targets (true masks) [n, m, m].
    """
    count = mean_count([len(labels)], labels.device)
    label_logits = logits[torch.arange(len(labels), device=labels.device), labels]
    total = F.binary_cross_entropy_with_logits(label_logits, targets, reduction="sum")
    return total / (count * targets.shape[1] * targets.shape[2])
