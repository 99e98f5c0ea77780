"""Cross-entropy of the pixels of training crops, from logits of a lower resolution."""

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.reference import fast_path_of
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.ops.cross_entropy import attach_gradients


def pixel_loss_reference(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the cross-entropy summed over the labelled pixels of enlarged logits.

    Args:
        logits: [B, K, h, w].
        labels: int64 [B, H, W] in 0, ..., K - 1, or IGNORE.
        size: height and width, at least those of the labels, that logits are enlarged to (bilinear) and then cut from.
    """
    height, width = labels.shape[-2:]
    # Contiguous logits stay so: softmax over channels-last logits would copy them.
    enlarged = F.interpolate(logits.float().contiguous(), size, mode="bilinear")[..., :height, :width]
    return F.cross_entropy(enlarged, labels, ignore_index=IGNORE, reduction="sum")


@fast_path_of(pixel_loss_reference)
def pixel_loss(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """See `pixel_loss_reference`; enlarged logits exist of one image at a time.

        for each image: enlarge its logits, sum the cross-entropy of its pixels, and take the gradient for its logits

    The whole batch would hold three tensors until the backward pass (16 images of 150 classes at 512 pixels: 2.5 GB
    each); the gradients held instead are as small as the logits.
    """
    logits = logits.float()
    needs_gradients = torch.is_grad_enabled() and logits.requires_grad
    sums, slopes = [], []
    for image, label in zip(logits.detach().split(1), labels.split(1), strict=True):
        image.requires_grad_(needs_gradients)
        sums.append(pixel_loss_reference(image, label, size))
        if needs_gradients:
            slopes += torch.autograd.grad(sums[-1], image)
    total = torch.stack([one.detach() for one in sums]).sum()
    return attach_gradients(total, (logits,), (torch.cat(slopes),)) if needs_gradients else total
