"""Mask R-CNN (arXiv 1703.06870) and its cascade on any pyramid, built from torchvision's parts.

::

    maps = pyramid(images)
    proposals = region proposal network(maps)              anchors scored and moved
    classes, boxes = box head(pooled features of each proposal)      from the level of its size
    masks = mask head(pooled features of each box)                   28 x 28 per class

Differences to `torchvision.models.detection.MaskRCNN`, all as in Detectron2 and mmdetection: anchors and pooling use
the pyramid's true strides (torchvision guesses powers of two for pooling and rounds strides and anchors to whole
pixels, wrong for a patch size of 14); pooling is aligned to pixel centres; mask targets are 0 or 1; linear layers start
with smaller weights; there are 1,000 proposals per image in training, not 2,000; boxes use L1, not a smooth L1 loss.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from selfpatch.core.distributed import all_reduce_max
from selfpatch.evaluation.detection.augmentation import Target
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.proposals import ProposalNetwork
from selfpatch.evaluation.detection.pyramid import Pyramid, padded
from selfpatch.evaluation.detection.roi_heads import RoIHeads
from selfpatch.evaluation.detection.samples import TrainingTarget
from selfpatch.evaluation.feature_pyramid import LEVELS


class MaskRCNN(nn.Module):
    """Network that finds boxes, classes and masks of objects of `num_classes` categories, without the background."""

    def __init__(self, pyramid: Pyramid, num_classes: int, config: DetectionConfig) -> None:
        super().__init__()
        self.pyramid, self.canvas = pyramid, config.canvas
        self.rpn = ProposalNetwork(pyramid.strides, pyramid.width, config)
        self.roi_heads = RoIHeads(pyramid.strides[:LEVELS], pyramid.width, num_classes + 1, config)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Return the losses by name, weighted, whose sum is minimised; means over the images of all processes.

        Args:
            images: normalised images [C, H, W] of any sizes.
            targets: objects of each image.
            seeds: seed of the anchors and proposals that are drawn for each image.
        """
        # Images are padded alike on all processes, as in one batch.
        sides = all_reduce_max(*(max(image.shape[axis] for image in images) for axis in (1, 2)))
        batch, maps = self._maps(images, sides)
        drawn: list[TrainingTarget] = [
            {**target, "generator": torch.Generator().manual_seed(seed)}
            for target, seed in zip(targets, seeds, strict=True)
        ]
        proposals, rpn_losses = self.rpn(batch, maps, drawn)
        return {**rpn_losses, **self.roi_heads.losses(maps, proposals, batch.image_sizes, drawn)}

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the boxes, labels, scores and masks of each image.

        Boxes are [n, 4] in pixels of the image, labels [n], scores [n] in descending order, and masks [n, 28, 28]
        probabilities on the box.
        """
        batch, maps = self._maps(images)
        proposals, _ = self.rpn(batch, maps)
        return self.roi_heads.detect(maps, proposals, batch.image_sizes)

    def _maps(self, images: Sequence[Tensor], sides: tuple[int, ...] = (0, 0)) -> tuple[ImageList, dict[str, Tensor]]:
        batch = padded(images, self.pyramid.multiple, [max(self.canvas, side) for side in sides])
        maps = {str(level): one for level, one in enumerate(self.pyramid(batch))}
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images]), maps
