"""Relations between the patches of a region, aligned between two views of it, without heads."""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from selfpatch.config.schema import settings

HIDDEN = -1e4
"""Logarithm of the relation to a patch that is left out: finite, so that none is NaN."""


@settings
class AlignedRelationConfig:
    """Settings of aligned relations."""

    student_temp: PositiveFloat = 0.1
    """Softmax temperature of the student's relations."""
    teacher_temp: PositiveFloat = 0.05
    """Softmax temperature of the teacher's relations."""


class AlignedRelationLoss(nn.Module):
    """Divergence of the student's relations between the patches of a region from the teacher's.

        for each image, over its patches that are not left out:
            z_s, z_t = patches minus their mean patch, each of length 1
            P, Q = softmax(z_t z_t^T / teacher_temp), softmax(z_s z_s^T / student_temp), row by row
            loss += mean over rows of KL(P || Q)

    It is SERE's spatial relation (arXiv 2206.05184, section 3.2) of the backbone's own patches. Departures from SERE:
    there are no heads, whose training takes more steps than strong weights need; one relation spans all channels, not
    those of each attention head; patches are centred and of length 1; both views show one region on one grid, see
    `ops.roi_align.align_overlap`; KL divergence replaces cross-entropy, which has the same gradient.

    Example:
        >>> criterion = AlignedRelationLoss()
        >>> student, teacher, overlaps = align_overlap(student_map, teacher_map, student_boxes, teacher_boxes, (7, 7))
        >>> loss = criterion(student, teacher, ignored=~overlaps[:, None].expand(-1, 49))

    Args:
        config: temperatures of student and teacher.
    """

    def __init__(self, config: AlignedRelationConfig = AlignedRelationConfig()) -> None:
        super().__init__()
        self.config = config

    def forward(self, student: Tensor, teacher: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar: the mean over the images that have two or more patches; 0 if there is none.

        Args:
            student: [B, N, D] patches.
            teacher: [B, N, D'] patches at the same positions, which take no gradient.
            ignored: [B, N] bool, True where a patch is left out.
        """
        kept = torch.ones_like(student[..., 0], dtype=torch.bool) if ignored is None else ~ignored  # [B, N]
        counted = kept & (kept.sum(1, keepdim=True) >= 2)
        c = self.config
        with torch.autocast(student.device.type, enabled=False):
            target = _log_relations(teacher.detach().float(), kept, c.teacher_temp)
            divergence = F.kl_div(
                _log_relations(student.float(), kept, c.student_temp), target, log_target=True, reduction="none"
            )  # [B, N, N]
        of_images = (divergence.sum(-1) * counted).sum(1) / counted.sum(1).clamp(min=1)
        return of_images.sum() / counted.any(1).sum().clamp(min=1)


def _log_relations(patches: Tensor, kept: Tensor, temp: float) -> Tensor:
    """Return the logarithms of the relations [B, N, N] of patches [B, N, D]; patches that are left out have none."""
    weights = kept.to(patches.dtype)
    mean = torch.einsum("bn,bnd->bd", weights, patches) / weights.sum(1, keepdim=True).clamp(min=1)
    z = F.normalize(patches - mean[:, None], dim=-1)
    return (z @ z.mT / temp).masked_fill(~kept[:, None], HIDDEN).log_softmax(-1)
