"""Mask R-CNN (arXiv 1703.06870) on any pyramid, built from torchvision's parts.

::

    maps = pyramid(images)
    proposals = region proposal network(maps)              anchors scored and moved
    classes, boxes = box head(pooled features of each proposal)      from the level of its size
    masks = mask head(pooled features of each box)                   28 x 28 per class

Differences to `torchvision.models.detection.MaskRCNN`, all as in Detectron2 and mmdetection: anchors and pooling use
the pyramid's true strides (torchvision guesses powers of two for pooling and rounds the anchors' down to whole pixels,
both wrong for a patch size of 14); pooling is aligned to pixel centres; mask targets are 0 or 1; there are 1,000
proposals per image in training, not 2,000. Boxes use torchvision's smooth L1 loss (beta 1/9), not L1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import faster_rcnn, mask_rcnn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from selfpatch.evaluation.detection.augmentation import Target
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.pyramid import ChannelNorm, Pyramid, padded
from selfpatch.evaluation.feature_pyramid import LEVELS

Size = tuple[int, int]
BOX_CELLS, MASK_CELLS = 7, 14
CANONICAL_ANCHORS = 28
"""Side, in anchor scales, of boxes pooled from the third map: 224 = 28 * 8 pixels (arXiv 1612.03144, eq. 1)."""


class MaskRCNN(nn.Module):
    """Network that finds boxes, classes and masks of objects of `num_classes` categories, without the background."""

    def __init__(self, pyramid: Pyramid, num_classes: int, config: DetectionConfig) -> None:
        super().__init__()
        self.pyramid, self.canvas = pyramid, config.canvas
        self.rpn = RegionProposalNetwork(
            StridedAnchors(pyramid.strides, config.anchor_scale),
            _InFloat32(RPNHead(pyramid.width, 3, conv_depth=1 if config.heads == "linear" else 2)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * config.proposals, "testing": config.proposals},
            post_nms_top_n={"training": config.proposals, "testing": config.proposals},
            nms_thresh=0.7,
        )
        self.roi_heads = _roi_heads(pyramid, num_classes + 1, config)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the unweighted losses by name, of normalised images [C, H, W] of any sizes."""
        batch, maps = self._maps(images)
        proposals, rpn_losses = self.rpn(batch, maps, list(targets))
        _, head_losses = self.roi_heads(maps, proposals, batch.image_sizes, list(targets))
        return {**rpn_losses, **head_losses}

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the boxes, labels, scores and masks of each image.

        Boxes are [n, 4] in pixels of the image, labels [n], scores [n] in descending order, and masks [n, 28, 28]
        probabilities on the box.
        """
        batch, maps = self._maps(images)
        proposals, _ = self.rpn(batch, maps)
        return self.roi_heads(maps, proposals, batch.image_sizes)[0]

    def _maps(self, images: Sequence[Tensor]) -> tuple[ImageList, dict[str, Tensor]]:
        batch = padded(images, self.pyramid.multiple, self.canvas)
        maps = {str(level): one for level, one in enumerate(self.pyramid(batch))}
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images]), maps


def _roi_heads(pyramid: Pyramid, num_outputs: int, config: DetectionConfig) -> RoIHeads:
    width, strides = pyramid.width, pyramid.strides[:LEVELS]
    hidden_dim, canonical = 4 * width, CANONICAL_ANCHORS * config.anchor_scale
    norm = None if config.heads == "linear" else ChannelNorm
    box_head: nn.Module
    if config.heads == "linear":
        box_head = faster_rcnn.TwoMLPHead(width * BOX_CELLS**2, hidden_dim)
    else:
        box_head = faster_rcnn.FastRCNNConvFCHead((width, BOX_CELLS, BOX_CELLS), [width] * 4, [hidden_dim], norm)
    return AlignedRoIHeads(
        PyramidPool(strides, BOX_CELLS, canonical),
        box_head,
        _InFloat32(faster_rcnn.FastRCNNPredictor(hidden_dim, num_outputs)),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.rois,
        positive_fraction=0.25,
        bbox_reg_weights=None,  # 10, 10, 5, 5
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=PyramidPool(strides, MASK_CELLS, canonical),
        mask_head=mask_rcnn.MaskRCNNHeads(width, [width] * 4, 1, norm),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(width, width, num_outputs),
    )


class StridedAnchors(AnchorGenerator):
    """Anchors of three aspect ratios at each position of each map, spaced by the map's true stride.

    Strides are in pixels, fractions allowed; `scale` is the side of the anchors in strides.
    """

    def __init__(self, strides: Sequence[float], scale: float) -> None:
        super().__init__(tuple((scale * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors [n, 4] of each image; they are the same for all."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        steps = [[feature_maps[0].new_full((), stride, dtype=torch.float32)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(one.shape[-2:]) for one in feature_maps], steps))
        return [anchors for _ in image_list.image_sizes]


class PyramidPool(nn.Module):
    """Pooling of boxes into `cells` x `cells` features, from the map of the level that fits their size.

    The level of a box is 2 + log2(sqrt(area) / canonical), rounded down, from 0 to the last; `canonical` is the
    sqrt(area) in pixels of the boxes that belong to the third map. `strides` belong to the maps.
    """

    def __init__(self, strides: Sequence[float], cells: int, canonical: float) -> None:
        super().__init__()
        self.strides, self.output_size = tuple(strides), (cells, cells)
        self.levels = LevelMapper(0, len(strides) - 1, canonical, canonical_level=2)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        """Return the features [n, C, cells, cells] of the n boxes of all images, in their order."""
        rois = torch.cat([F.pad(one, (1, 0), value=image) for image, one in enumerate(boxes)])  # [n, 5]
        levels = self.levels(boxes)
        indices = [torch.where(levels == level)[0] for level in range(len(self.strides))]
        pooled = [
            roi_align(maps[str(level)], rois[index], self.output_size, 1 / stride, sampling_ratio=-1, aligned=True)
            for level, (index, stride) in enumerate(zip(indices, self.strides, strict=True))
        ]
        return torch.cat(pooled)[torch.cat(indices).argsort()]


class AlignedRoIHeads(RoIHeads):
    """torchvision's RoIHeads with mask targets that are aligned to pixel centres and thresholded at 1/2."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[Size],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the detections of each image, or, if `targets` are given, the losses."""
        if targets is not None:
            return [], self._losses(features, proposals, image_shapes, targets)
        scores, moves = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        found = self.postprocess_detections(scores, moves, proposals, image_shapes)
        boxes, _, labels = found
        masks = maskrcnn_inference(self._mask_logits(features, boxes, image_shapes), labels)
        parts = zip(*found, masks, strict=True)
        return [{"boxes": b, "scores": s, "labels": n, "masks": m[:, 0]} for b, s, n, m in parts], {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        proposals, matched, labels, moves = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, sizes)
        classes, boxes = fastrcnn_loss(*self.box_predictor(self.box_head(pooled)), labels, moves)
        mask_boxes, mask_labels, true_masks = [], [], []
        for target, proposal, label, object_index in zip(targets, proposals, labels, matched, strict=True):
            index = _on_masks(target["masks"], torch.where(label > 0)[0], object_index)
            mask_boxes.append(proposal[index])
            mask_labels.append(label[index])
            true_masks.append(mask_targets(target["masks"], proposal[index], object_index[index], 2 * MASK_CELLS))
        logits = self._mask_logits(features, mask_boxes, sizes)
        masks = mask_loss(logits, torch.cat(mask_labels), torch.cat(true_masks))
        return {"loss_classifier": classes, "loss_box_reg": boxes, "loss_mask": masks}

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes))).float()


def _on_masks(masks: Tensor, on_objects: Tensor, matched: Tensor) -> Tensor:
    """Return those indices of boxes on objects whose object has a mask."""
    has_mask = masks.flatten(1).any(dim=1).bool()  # [objects]
    return on_objects[has_mask[matched[on_objects]]]


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
    """Return the binary cross-entropy of the masks of the true classes; 0 if no box lies on an object.

    Logits are [n, classes, m, m], labels (true classes) [n], and targets (true masks) [n, m, m].
    """
    if len(labels) == 0:
        return logits.sum() * 0
    label_logits = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(label_logits, targets)


class _InFloat32(nn.Module):
    """Head whose predictions are cast to float32: bfloat16 cannot hold coordinates of a thousand pixels."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor | list[Tensor]) -> tuple[list[Tensor] | Tensor, ...]:
        return tuple([o.float() for o in out] if isinstance(out, list) else out.float() for out in self.head(x))
