"""A training step of a detector without anything that depends on values, for the estimates of a dry run."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.network import MaskRCNN
from selfpatch.evaluation.detection.roi_heads import BOX_CELLS, MASK_CELLS

NOTES = (
    "Images have the largest size that the augmentation gives. The heads see as many boxes as are sampled, a quarter "
    "of them on objects. Anchors, matching, suppression and pooling are not in the estimate.",
)


def loss_without_sampling(network: MaskRCNN, config: DetectionConfig, num_images: int) -> Tensor:
    """Return a scalar that depends on every output of the network for a dummy batch."""
    sides = (config.canvas,) * 2 if config.canvas else (max(config.short_sides), config.long_side)
    height, width = (-(-side // network.pyramid.multiple) * network.pyramid.multiple for side in sides)
    maps = network.pyramid(torch.zeros(num_images, 3, height, width))
    rois = num_images * config.rois
    boxes = torch.zeros(rois, network.pyramid.width, BOX_CELLS, BOX_CELLS, requires_grad=True)
    masks = torch.zeros(rois // 4, network.pyramid.width, MASK_CELLS, MASK_CELLS, requires_grad=True)
    outputs = [network.rpn.head(list(maps))]
    outputs += [
        part for _, heads, _ in network.roi_heads.each_stage() for part in (heads.boxes(boxes), heads.masks(masks))
    ]
    return torch.stack([output.float().sum() for output in tree_leaves(outputs)]).sum()
