"""PaKA: patch kernel alignment of a student's and a teacher's view of the same region (arXiv 2509.05606)."""

import torch
from torch import Tensor, nn

from selfpatch.losses.kept_patches import kept_patches, mean_over_images, mean_patch

MIN_NORM = 1e-6
"""Smallest squared norm of a kernel that is divided by."""


class PaKALoss(nn.Module):
    """One minus the linear CKA (centred kernel alignment) of the patches of student and teacher.

        for each image, over its patches that are not left out:
            z_s, z_t = patches minus their mean patch
            K_s, K_t = z_s z_s^T, z_t z_t^T
            loss += 1 - sum(K_s * K_t) / (|K_s| |K_t|)

    Patches are not normalised. Both views show the same region on the same grid, see `ops.roi_align.align_overlap`.
    lightly's released code takes a random subset of more than 512 patches; this takes all.

    Example:
        >>> criterion = PaKALoss()
        >>> student, teacher, overlaps = align_overlap(student_map, teacher_map, student_boxes, teacher_boxes, (7, 7))
        >>> loss = criterion(student_head(student), teacher_head(teacher), ignored=~overlaps[:, None].expand(-1, 49))
    """

    def forward(self, student: Tensor, teacher: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar: the mean over the images that have two or more patches; 0 if there is none.

        Of several processes, each gets its part, whose mean over them is the loss.

        Args:
            student: [B, N, D] patches.
            teacher: [B, N, D'] patches at the same positions, which take no gradient.
            ignored: [B, N] bool, True where a patch is left out.
        """
        kept = kept_patches(student, ignored)
        with torch.autocast(student.device.type, enabled=False):
            z_s, z_t = (
                (x - mean_patch(x, kept)) * kept[..., None] for x in (student.float(), teacher.detach().float())
            )
            product, *squares = _kernel_products(z_s, z_t)
            norm_s, norm_t = (square.clamp(min=MIN_NORM).sqrt() for square in squares)
            return mean_over_images(1 - product / (norm_s * norm_t), kept)


def _kernel_products(a: Tensor, b: Tensor) -> list[Tensor]:
    """Return sum(K_a * K_b), sum(K_a * K_a) and sum(K_b * K_b), [B] each, of the kernels K_a = a a^T and K_b = b b^T.

    Each equals |a^T b|^2, so that many patches need no matrix of pairs, and few patches none of channels.
    """
    if a.shape[1] > min(a.shape[2], b.shape[2]):
        return [(x.mT @ y).square().sum((-2, -1)) for x, y in ((a, b), (a, a), (b, b))]
    kernel_a, kernel_b = a @ a.mT, b @ b.mT
    return [x.sum((-2, -1)) for x in (kernel_a * kernel_b, kernel_a.square(), kernel_b.square())]
