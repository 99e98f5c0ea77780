"""Heads of Mask R-CNN and of Cascade Mask R-CNN: classes, boxes and masks of proposals, in one stage or three.

Cascade R-CNN (arXiv 1712.00726, arXiv 1906.09756), as mmdetection 2 has it:

::

    training: for each stage:
        boxes = proposals and the objects' own boxes, matched at the stage's IoU, 512 of them drawn
        loss += weight of the stage * (classes + boxes + masks of the boxes on objects)
        proposals = the boxes, moved by this stage (those on the background as their most likely class)
    evaluation: scores = softmax of the mean logits of all stages; boxes are those of the last stage;
        masks = mean probability over stages

Mask R-CNN is one stage.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes, roi_align
from torchvision.ops.poolers import LevelMapper

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.losses import box_loss, mask_loss, mask_targets
from selfpatch.evaluation.detection.pyramid import NORMS
from selfpatch.evaluation.detection.samples import BoxSamples, TrainingTarget, mean_count, sample_boxes

Size = tuple[int, int]
BOX_CELLS, MASK_CELLS = 7, 14
MASK_SIDE = 2 * MASK_CELLS
CANONICAL_ANCHORS = 28
"""Side, in anchor scales, of boxes pooled from the third map: 224 = 28 * 8 pixels (arXiv 1612.03144, eq. 1)."""
MIN_SCORE, NMS_IOU, MAX_DETECTIONS = 0.05, 0.5, 100
SMALLEST_SIDE = 1e-2


class Stage(NamedTuple):
    """Constants of a stage."""

    iou: float
    """Smallest IoU of a box with its object in training."""
    stds: tuple[float, float, float, float]
    """Scale of the offsets of centre and size that the box head predicts."""
    weight: float
    """Weight of the losses."""


STAGES = {
    "mask-rcnn": (Stage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),),
    "cascade": (
        Stage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
        Stage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
        Stage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
    ),
}
"""Stages of each detector; the cascade's are those of iBOT's released config."""


class PyramidPool(nn.Module):
    """Pooling of boxes into `cells` x `cells` features, from the map of the level that fits their size.

    The level of a box is 2 + log2(sqrt(area) / canonical), rounded down, from 0 to the last; `canonical` is the
    sqrt(area) in pixels of the boxes that belong to the third map. `strides` belong to the maps.
    """

    def __init__(self, strides: Sequence[float], cells: int, canonical: float) -> None:
        super().__init__()
        self.strides, self.output_size = tuple(strides), (cells, cells)
        self.levels = LevelMapper(0, len(strides) - 1, canonical, canonical_level=2)

    def forward(self, maps: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return the features [n, C, cells, cells] of the n boxes of all images, in their order."""
        rois = torch.cat([F.pad(one, (1, 0), value=image) for image, one in enumerate(boxes)])  # [n, 5]
        levels = self.levels(list(boxes))
        indices = [torch.where(levels == level)[0] for level in range(len(self.strides))]
        pooled = [
            roi_align(maps[str(level)], rois[index], self.output_size, 1 / stride, sampling_ratio=-1, aligned=True)
            for level, (index, stride) in enumerate(zip(indices, self.strides, strict=True))
        ]
        return torch.cat(pooled)[torch.cat(indices).argsort()]


class StageHeads(nn.Module):
    """Heads of one stage, for features of boxes."""

    def __init__(self, width: int, num_outputs: int, config: DetectionConfig) -> None:
        super().__init__()
        hidden_dim = 4 * width
        self.box_head: nn.Module
        if config.heads == "linear":
            self.box_head = TwoMLPHead(width * BOX_CELLS**2, hidden_dim)
        else:
            sides = (width, BOX_CELLS, BOX_CELLS)
            self.box_head = FastRCNNConvFCHead(sides, [width] * 4, [hidden_dim], NORMS[config.box_norm])
        self.box_predictor = FastRCNNPredictor(hidden_dim, num_outputs)
        self.mask_head = MaskRCNNHeads(width, [width] * 4, 1, NORMS[config.mask_norm])
        self.mask_predictor = MaskRCNNPredictor(width, width, num_outputs)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise the linear layers as Detectron2 and mmdetection do; torchvision has already done the others."""
        stds = {self.box_predictor.cls_score: 0.01, self.box_predictor.bbox_pred: 0.001}
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                if layer in stds:
                    nn.init.normal_(layer.weight, std=stds[layer])
                else:
                    nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class logits [n, C] and the offsets [n, C, 4] of boxes, the background first, in float32."""
        logits, moves = self.box_predictor(self.box_head(features))
        return logits.float(), moves.float().unflatten(1, (-1, 4))

    def masks(self, features: Tensor) -> Tensor:
        """Return the mask logits [n, C, 28, 28] in float32."""
        return self.mask_predictor(self.mask_head(features)).float()


class RoIHeads(nn.Module):
    """Heads of all stages; `num_outputs` counts the background."""

    def __init__(self, strides: Sequence[float], width: int, num_outputs: int, config: DetectionConfig) -> None:
        super().__init__()
        canonical = CANONICAL_ANCHORS * config.anchor_scale
        self.constants = STAGES[config.detector]
        self.coders = [BoxCoder(tuple(1 / std for std in stage.stds)) for stage in self.constants]
        self.stages = nn.ModuleList(StageHeads(width, num_outputs, config) for _ in self.constants)
        self.box_pool, self.mask_pool = (PyramidPool(strides, cells, canonical) for cells in (BOX_CELLS, MASK_CELLS))
        self.num_samples, self.box_loss = config.rois, config.box_loss
        self.min_score = MIN_SCORE

    def each_stage(self) -> Iterator[tuple[Stage, StageHeads, BoxCoder]]:
        """Iterate over the constants, the heads and the coder of offsets of the stages."""
        for constants, heads, coder in zip(self.constants, self.stages, self.coders, strict=True):
            assert isinstance(heads, StageHeads)
            yield constants, heads, coder

    def losses(
        self,
        maps: dict[str, Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[TrainingTarget],
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name: `stage1_classes`, `stage1_boxes`, `stage1_masks`, `stage2_classes`, ...

        Args:
            maps: maps of the pyramid by level.
            proposals: boxes [n, 4] of each image.
            sizes: (height, width) of each image.
            targets: objects of each image.
        """
        losses: dict[str, Tensor] = {}
        for number, (stage, heads, coder) in enumerate(self.each_stage()):
            samples = [
                sample_boxes(boxes, target, stage.iou, self.num_samples)
                for boxes, target in zip(proposals, targets, strict=True)
            ]
            boxes, labels = [one.boxes for one in samples], torch.cat([one.labels for one in samples])
            logits, moves = heads.boxes(self.box_pool(maps, boxes))
            count = mean_count([len(labels)], labels.device)
            terms = {
                "classes": F.cross_entropy(logits, labels, reduction="sum") / count,
                "boxes": box_loss(self.box_loss, moves, samples, coder) / count,
                "masks": self._mask_loss(heads, maps, samples, targets),
            }
            losses |= {f"stage{number + 1}_{name}": stage.weight * term for name, term in terms.items()}
            if number + 1 < len(self.stages):
                moved = self._moved(coder, logits, moves, boxes, sizes, labels)
                proposals = [one[~sample.is_object] for one, sample in zip(moved, samples, strict=True)]
        return losses

    def detect(
        self, maps: dict[str, Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[dict[str, Tensor]]:
        """Return the boxes, scores, labels and masks of each image, as `MaskRCNN.detect` describes them."""
        boxes, all_logits = list(proposals), []
        for number, (_, heads, coder) in enumerate(self.each_stage()):
            logits, moves = heads.boxes(self.box_pool(maps, boxes))
            all_logits.append(logits)
            if number + 1 < len(self.stages):
                boxes = self._moved(coder, logits, moves, boxes, sizes)
        scores = torch.stack(all_logits).mean(dim=0).softmax(dim=1)
        placed = coder.decode_single(moves.flatten(1), torch.cat(boxes)).unflatten(1, (-1, 4))
        counts = [len(one) for one in boxes]
        found = [self._kept(*one) for one in zip(placed.split(counts), scores.split(counts), sizes, strict=True)]
        masks = self._mask_probabilities(maps, found)
        return [{**one, "masks": mask} for one, mask in zip(found, masks, strict=True)]

    def _mask_loss(
        self,
        heads: StageHeads,
        maps: dict[str, Tensor],
        samples: Sequence[BoxSamples],
        targets: Sequence[TrainingTarget],
    ) -> Tensor:
        """Return the loss of the masks of boxes on objects that have a mask."""
        boxes, labels, true_masks = [], [], []
        for one, target in zip(samples, targets, strict=True):
            index = one.on_masks(target["masks"])
            boxes.append(one.boxes[index])
            labels.append(one.labels[index])
            true_masks.append(mask_targets(target["masks"], one.boxes[index], one.matched[index], MASK_SIDE))
        logits = heads.masks(self.mask_pool(maps, boxes))
        return mask_loss(logits, torch.cat(labels), torch.cat(true_masks))

    @torch.no_grad()
    def _moved(
        self,
        coder: BoxCoder,
        logits: Tensor,
        moves: Tensor,
        boxes: Sequence[Tensor],
        sizes: Sequence[Size],
        labels: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the boxes of each image, moved as their class, within the image.

        The class is that of `labels`; the most likely one of a box on the background, or of all boxes without labels.
        """
        classes = logits[:, 1:].argmax(dim=1) + 1
        if labels is not None:
            classes = torch.where(labels > 0, labels, classes)
        chosen = moves[torch.arange(len(moves), device=moves.device), classes]
        moved = coder.decode_single(chosen, torch.cat(list(boxes))).split([len(one) for one in boxes])
        return [clip_boxes_to_image(one, size) for one, size in zip(moved, sizes, strict=True)]

    def _kept(self, boxes: Tensor, scores: Tensor, size: Size) -> dict[str, Tensor]:
        """Return the detections of one image, of boxes [n, C, 4] and scores [n, C], after non-maximum suppression.

        Each class of a box is a candidate, if its score is large enough.
        """
        candidates = clip_boxes_to_image(boxes[:, 1:].flatten(0, 1), size)
        likelihood = scores[:, 1:].flatten()
        labels = torch.arange(1, scores.shape[1], device=scores.device).repeat(len(scores))
        likely = torch.where(likelihood > self.min_score)[0]
        likely = likely[remove_small_boxes(candidates[likely], SMALLEST_SIDE)]
        kept = likely[batched_nms(candidates[likely], likelihood[likely], labels[likely], NMS_IOU)[:MAX_DETECTIONS]]
        return {"boxes": candidates[kept], "scores": likelihood[kept], "labels": labels[kept]}

    def _mask_probabilities(self, maps: dict[str, Tensor], found: Sequence[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        """Return the masks [n, 28, 28] of the detections of each image, the mean probability over stages."""
        boxes, labels = [one["boxes"] for one in found], torch.cat([one["labels"] for one in found])
        features, rows = self.mask_pool(maps, boxes), torch.arange(len(labels), device=labels.device)
        masks = [heads.masks(features)[rows, labels].sigmoid() for _, heads, _ in self.each_stage()]
        return torch.stack(masks).mean(dim=0).split([len(one) for one in boxes])
