"""Mask R-CNN (arXiv 1703.06870) on any pyramid, of torchvision's parts.

    maps = pyramid(images)
    proposals = region proposal network(maps)                 anchors scored and moved
    classes, boxes = box head(what each proposal covers)      on the level of its size
    masks = mask head(what each box covers)                   28 x 28 a class

What differs from `torchvision.models.detection.MaskRCNN`, each as in Detectron2 and mmdetection: anchors and pooling
use the pyramid's true strides (torchvision guesses powers of two for pooling and rounds anchors' down to whole pixels,
both wrong for a patch of 14); pooling is aligned to pixel centres; mask targets are 0 or 1; 1,000 proposals an image
in training, not 2,000. Boxes are learned by torchvision's smooth L1 loss (beta 1/9), where mmdetection has L1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

from selfpatch.evaluation.detection.augmentation import Target
from selfpatch.evaluation.detection.pyramid import ChannelNorm, Pyramid, padded
from selfpatch.evaluation.feature_pyramid import LEVELS

Heads = Literal["linear", "convolutional"]
Size = tuple[int, int]
BOX_CELLS, MASK_CELLS = 7, 14
CANONICAL_ANCHORS = 28
"""A box of 224 = 28 x 8 pixels is pooled from the third map (arXiv 1612.03144, equation 1): anchors are 8 strides."""


class MaskRCNN(nn.Module):
    """Boxes, classes and masks of objects.

    Args:
        pyramid: the maps, and their backbone.
        num_classes: categories, without the background.
        heads: `linear`, a box head of two fully connected layers (the 1x protocol); `convolutional`, one of four
            convolutions and a layer, two convolutions for proposals, LayerNorms in boxes' and masks' (ViTDet).
        anchor_scale: side of the anchors in strides of their map; 8: 32 to 512 pixels.
        proposals: kept in an image, in training as in evaluation.
        rois: proposals of an image that the heads learn from, a quarter of them on objects.
        canvas: side that batches of images have at least.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        num_classes: int,
        *,
        heads: Heads = "linear",
        anchor_scale: float = 8.0,
        proposals: int = 1000,
        rois: int = 512,
        canvas: int = 0,
    ) -> None:
        super().__init__()
        self.pyramid, self.canvas = pyramid, canvas
        anchors = StridedAnchors(pyramid.strides, anchor_scale)
        counts = {"training": 2 * proposals, "testing": proposals}
        self.rpn = RegionProposalNetwork(
            anchors,
            _InFloat32(RPNHead(pyramid.width, 3, conv_depth=1 if heads == "linear" else 2)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=counts,
            post_nms_top_n={"training": proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        self.roi_heads = _roi_heads(pyramid, num_classes + 1, heads, anchor_scale, rois)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The unweighted losses by name.

        Args:
            images: normalised, [C, H, W] each, of any sizes.
            targets: of each.
        """
        batch, maps = self._maps(images)
        proposals, losses = self.rpn(batch, maps, list(targets))
        _, of_heads = self.roi_heads(maps, proposals, batch.image_sizes, list(targets))
        return {**losses, **of_heads}

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Of each image: boxes [n, 4] in its pixels, labels [n], scores [n] in descending order, and masks [n, 28, 28],
        probabilities in the cells of each box."""
        batch, maps = self._maps(images)
        proposals, _ = self.rpn(batch, maps)
        return self.roi_heads(maps, proposals, batch.image_sizes)[0]

    def _maps(self, images: Sequence[Tensor]) -> tuple[ImageList, dict[str, Tensor]]:
        batch = padded(images, self.pyramid.multiple, self.canvas)
        maps = {str(level): one for level, one in enumerate(self.pyramid(batch))}
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images]), maps


class StridedAnchors(AnchorGenerator):
    """Anchors of three shapes at each place of each map, its true stride apart.

    Args:
        strides: of the maps, in pixels, fractions allowed.
        scale: side of the anchors in strides.
    """

    def __init__(self, strides: Sequence[float], scale: float) -> None:
        super().__init__(tuple((scale * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        steps = [[feature_maps[0].new_full((), stride, dtype=torch.float32)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(one.shape[-2:]) for one in feature_maps], steps))
        return [anchors for _ in image_list.image_sizes]


class PyramidPool(nn.Module):
    """What boxes cover, `cells` x `cells` of the map that goes with their size.

    Args:
        strides: of the maps that boxes are pooled from.
        canonical: sqrt(area) in pixels of the boxes that belong to the third map.
    """

    def __init__(self, strides: Sequence[float], cells: int, canonical: float) -> None:
        super().__init__()
        self.strides, self.canonical = tuple(strides), canonical
        self.output_size = (cells, cells)

    def levels(self, boxes: Tensor) -> Tensor:
        """[n] number of the map of each box [n, 4]: 2 + log2(sqrt(area) / canonical), from 0 to the last."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = (2 + (side / self.canonical).log2() + 1e-6).floor()
        return level.clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        """[n, C, cells, cells] of the n boxes of all images in their order."""
        together = torch.cat(boxes)
        image = torch.repeat_interleave(
            torch.arange(len(boxes), device=together.device),
            torch.tensor([len(one) for one in boxes], device=together.device),
        )
        rois = torch.cat([image[:, None].to(together.dtype), together], dim=1)  # [n, 5]
        levels = self.levels(together)
        places = [torch.where(levels == level)[0] for level in range(len(self.strides))]
        pooled = [
            roi_align(maps[str(level)], rois[where], self.output_size, 1 / stride, sampling_ratio=-1, aligned=True)
            for level, (where, stride) in enumerate(zip(places, self.strides, strict=True))
        ]
        return torch.cat(pooled)[torch.cat(places).argsort()]


class AlignedRoIHeads(RoIHeads):
    """torchvision's, with mask targets aligned to pixel centres and cut at 1/2."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[Size],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if targets is not None:
            return [], self._losses(features, proposals, image_shapes, targets)
        scores, moves = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        found = self.postprocess_detections(scores, moves, proposals, image_shapes)
        boxes, _, labels = found
        masks = maskrcnn_inference(self._mask_logits(features, boxes, image_shapes).float(), labels)
        parts = zip(*found, masks, strict=True)
        return [{"boxes": b, "scores": s, "labels": n, "masks": m[:, 0]} for b, s, n, m in parts], {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        proposals, matched, labels, moves = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, sizes)
        classes, boxes = fastrcnn_loss(*self.box_predictor(self.box_head(pooled)), labels, moves)
        on_objects = [
            _on_masks(target["masks"], torch.where(label > 0)[0], number)
            for target, label, number in zip(targets, labels, matched, strict=True)
        ]
        covered = [p[where] for p, where in zip(proposals, on_objects, strict=True)]
        logits = self._mask_logits(features, covered, sizes).float()
        wanted = [
            mask_targets(target["masks"], box, number[where], logits.shape[-1])
            for target, box, number, where in zip(targets, covered, matched, on_objects, strict=True)
        ]
        label = torch.cat([label[where] for label, where in zip(labels, on_objects, strict=True)])
        masks = mask_loss(logits, label, torch.cat(wanted))
        return {"loss_classifier": classes, "loss_box_reg": boxes, "loss_mask": masks}

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes)))


def _on_masks(masks: Tensor, where: Tensor, matched: Tensor) -> Tensor:
    """Of the boxes on objects, those whose object has a mask to learn."""
    outlined = masks.flatten(1).any(dim=1).bool()  # [objects]
    return where[outlined[matched[where]]]


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, cells: int) -> Tensor:
    """What each box should show of its object, [n, cells, cells] of 0 and 1.

    Args:
        masks: [objects, H, W] uint8 of one image.
        boxes: [n, 4].
        matched: [n] the object of each box.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, cells, cells)
    used, number = matched.unique(return_inverse=True)
    rois = torch.cat([number[:, None].to(boxes.dtype), boxes], dim=1)
    cut = roi_align(masks[used, None].to(boxes.dtype), rois, (cells, cells), 1.0, sampling_ratio=-1, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes.dtype)


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of the masks of the right classes; 0 where no box lies on an object.

    Args:
        logits: [n, classes, m, m].
        labels: [n].
        targets: [n, m, m].
    """
    if len(labels) == 0:
        return logits.sum() * 0
    of_label = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(of_label, targets)


class _InFloat32(nn.Module):
    """Gives what a head predicts in float32, for boxes of a thousand pixels are none in bfloat16."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor | list[Tensor]) -> tuple[list[Tensor] | Tensor, ...]:
        return tuple([o.float() for o in out] if isinstance(out, list) else out.float() for out in self.head(x))


def _roi_heads(pyramid: Pyramid, outputs: int, heads: Heads, anchor_scale: float, rois: int) -> RoIHeads:
    width, strides = pyramid.width, pyramid.strides[:LEVELS]
    hidden = 4 * width
    norm = None if heads == "linear" else ChannelNorm
    box_head: nn.Module
    if heads == "linear":
        box_head = TwoMLPHead(width * BOX_CELLS**2, hidden)
    else:
        box_head = FastRCNNConvFCHead((width, BOX_CELLS, BOX_CELLS), [width] * 4, [hidden], norm)
    return AlignedRoIHeads(
        PyramidPool(strides, BOX_CELLS, CANONICAL_ANCHORS * anchor_scale),
        box_head,
        _InFloat32(FastRCNNPredictor(hidden, outputs)),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=rois,
        positive_fraction=0.25,
        bbox_reg_weights=None,  # 10, 10, 5, 5
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=PyramidPool(strides, MASK_CELLS, CANONICAL_ANCHORS * anchor_scale),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm),
        mask_predictor=MaskRCNNPredictor(width, width, outputs),
    )
