"""Contrast between the patches of a region, aligned between two views of it, without heads or memory bank."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.losses.kept_patches import kept_patches, mean_over_images, mean_over_kept


class AlignedContrastLoss(nn.Module):
    """InfoNCE of each patch with the teacher's patch at its position, against those at the other positions.

        for each image, over its patches that are not left out:
            z_s, z_t = patches of length 1
            loss += mean over i of -log softmax_j(z_s[i] . z_t[j] / temp)[i]

    The negatives of a patch are patches of its own image, so that features have to tell positions apart whatever the
    crop and the colours. Both views show one region on one grid, see `ops.roi_align.align_overlap`.

    Example:
        >>> criterion = AlignedContrastLoss()
        >>> student, teacher, overlaps = align_overlap(student_map, teacher_map, student_boxes, teacher_boxes, (7, 7))
        >>> loss = criterion(student, teacher, ignored=~overlaps[:, None].expand(-1, 49))

    Args:
        temp: softmax temperature of the cosine similarities.
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, student: Tensor, teacher: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar: the mean over the images that have two or more patches; 0 if there is none.

        Of several processes, each gets its part, whose mean over them is the loss.

        Args:
            student: [B, N, D] patches.
            teacher: [B, N, D] patches at the same positions, which take no gradient.
            ignored: [B, N] bool, True where a patch is left out.
        """
        kept = kept_patches(student, ignored)
        with torch.autocast(student.device.type, enabled=False):
            z_s, z_t = (F.normalize(x.float(), dim=-1) for x in (student, teacher.detach()))
            logits = (z_s @ z_t.mT / self.temp).masked_fill(~kept[:, None], float("-inf"))  # [B, N, N]
            # A patch that is left out has no similarity with itself; its row does not count.
            logits = logits.masked_fill(~kept[..., None], 0.0)
            contrast = -logits.log_softmax(-1).diagonal(dim1=1, dim2=2)  # [B, N]
        return mean_over_images(mean_over_kept(contrast, kept), kept)
