"""Region proposal network on any pyramid, on torchvision's."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.samples import (
    ANCHOR_IOUS,
    POSITIVE_ANCHORS,
    TrainingTarget,
    label_anchors,
    mean_count,
)

NUM_ANCHORS = 256
"""Number of anchors per image that the network is trained on."""
RATIOS = (0.5, 1.0, 2.0)
"""Height by width of the anchors at a position."""
NMS_IOU = 0.7
SMOOTH_L1_BETA = 1 / 9


class StridedAnchors(AnchorGenerator):
    """Anchors of three aspect ratios at each position of each map, spaced by the map's true stride.

    Strides are in pixels, fractions allowed; `scale` is the side of the anchors in strides.
    """

    def __init__(self, strides: Sequence[float], scale: float) -> None:
        super().__init__(tuple((scale * stride,) for stride in strides), (RATIOS,) * len(strides))
        self.strides = strides

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return anchors around (0, 0), [ratios, 4]; torchvision's are rounded to pixels, those of others are not."""
        (side,) = scales
        heights = side * torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths = side**2 / heights
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors [n, 4] of each image; they are the same for all."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        steps = [[feature_maps[0].new_full((), stride, dtype=torch.float32)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(one.shape[-2:]) for one in feature_maps], steps))
        return [anchors for _ in image_list.image_sizes]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network, with the matching and the loss of a preset.

    Anchors are drawn by the generator of their image, and losses are means over the global batch, so that neither
    depends on how images are spread over processes. mmdetection gives the best anchor of an object to that object even
    if another one overlaps it more; here, as in torchvision and Detectron2, the larger overlap decides.
    """

    def __init__(self, strides: Sequence[float], width: int, config: DetectionConfig) -> None:
        num_training = config.train_proposals or config.proposals
        super().__init__(
            StridedAnchors(strides, config.anchor_scale),
            _InFloat32(RPNHead(width, len(RATIOS), conv_depth=config.rpn_depth)),
            fg_iou_thresh=ANCHOR_IOUS[1],
            bg_iou_thresh=ANCHOR_IOUS[0],
            batch_size_per_image=NUM_ANCHORS,
            positive_fraction=POSITIVE_ANCHORS,
            pre_nms_top_n={"training": max(num_training, 2 * config.proposals), "testing": config.proposals},
            post_nms_top_n={"training": num_training, "testing": config.proposals},
            nms_thresh=NMS_IOU,
        )
        self.matching = partial(
            label_anchors, min_best_iou=config.min_anchor_iou, inside_only=config.anchors_inside, num=NUM_ANCHORS
        )
        self.beta = SMOOTH_L1_BETA if config.rpn_loss == "smooth-l1" else 0.0

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[TrainingTarget]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the labels and the objects' boxes of the anchors of each image, see `label_anchors`."""
        pairs = [self.matching(one, target) for one, target in zip(anchors, targets, strict=True)]
        labels, boxes = zip(*pairs, strict=True)
        return list(labels), list(boxes)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of scores and of boxes, sums divided by the number of anchors that are trained on."""
        label, moves = torch.cat(labels), torch.cat(regression_targets)
        used, on_objects = torch.where(label >= 0)[0], torch.where(label > 0)[0]
        count = mean_count([len(used)], label.device)
        scores = F.binary_cross_entropy_with_logits(objectness.flatten()[used], label[used], reduction="sum")
        boxes = F.smooth_l1_loss(pred_bbox_deltas[on_objects], moves[on_objects], beta=self.beta, reduction="sum")
        return scores / count, boxes / count


class _InFloat32(nn.Module):
    """Head whose predictions are cast to float32: bfloat16 cannot hold coordinates of a thousand pixels."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], ...]:
        return tuple([one.float() for one in out] if isinstance(out, list) else out.float() for out in self.head(maps))
