"""Relations between the patches of a region, aligned between two views of it, without heads."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.losses.kept_patches import kept_patches, mean_over_images, mean_over_kept, mean_patch

HIDDEN = -1e4
"""Logarithm of the relation to a patch that is left out: finite, so that none is NaN."""


@settings
class AlignedRelationConfig:
    """Settings of aligned relations."""

    anchors: Literal["teacher", "own"] = "teacher"
    """Patches that the student's are related to: the teacher's, or its own (SERE)."""
    student_temp: PositiveFloat = 0.1
    """Softmax temperature of the student's relations."""
    teacher_temp: PositiveFloat = 0.05
    """Softmax temperature of the teacher's relations."""


class AlignedRelationLoss(nn.Module):
    """Divergence of the student's relations between the patches of a region from the teacher's.

        for each image, over its patches that are not left out:
            m = the teacher's mean patch
            s, t, y = student, teacher, targets minus m, each patch of length 1
            P, Q = softmax(y t^T / teacher_temp), softmax(s t^T / student_temp), row by row
            loss += mean over rows of KL(P || Q)

    The targets y are the teacher's patches themselves, which gives SERE's spatial relation (arXiv 2206.05184, section
    3.2), or other patches in their place, such as SelfPatch's aggregates. Departures from SERE:

    - There are no heads, which would have to be trained before strong weights can learn from them.
    - The student's patches are related to the teacher's, as images are in ReSSL (arXiv 2107.09282), and not to one
      another. This also keeps features from drifting. `anchors="own"` relates s to s, centred by its own mean.
    - One relation spans all channels, not those of each attention head. Patches are centred and of length 1.
    - Both views show one region on one grid, see `ops.roi_align.align_overlap`.
    - KL divergence replaces cross-entropy, which has the same gradient.

    Example:
        >>> criterion = AlignedRelationLoss()
        >>> student, teacher, overlaps = align_overlap(student_map, teacher_map, student_boxes, teacher_boxes, (7, 7))
        >>> loss = criterion(student, teacher, ignored=~overlaps[:, None].expand(-1, 49))

    Args:
        config: anchors, and temperatures of student and teacher.
    """

    def __init__(self, config: AlignedRelationConfig = AlignedRelationConfig()) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, student: Tensor, teacher: Tensor, ignored: Tensor | None = None, *, targets: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar: the mean over the images that have two or more patches; 0 if there is none.

        Of several processes, each gets its part, whose mean over them is the loss.

        Args:
            student: [B, N, D] patches.
            teacher: [B, N, D] patches at the same positions, which take no gradient.
            ignored: [B, N] bool, True where a patch is left out.
            targets: [B, N, D] patches whose relations to the teacher's the student learns; defaults to the teacher's.
        """
        kept = kept_patches(student, ignored)
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = student.float(), teacher.detach().float()
            mean = mean_patch(teacher, kept)
            own_mean = mean if self.config.anchors == "teacher" else mean_patch(student, kept)
            t, s = F.normalize(teacher - mean, dim=-1), F.normalize(student - own_mean, dim=-1)
            y = t if targets is None else F.normalize(targets.detach().float() - mean, dim=-1)
            target = _log_relations(y, t, kept, self.config.teacher_temp)
            relation = _log_relations(s, t if self.config.anchors == "teacher" else s, kept, self.config.student_temp)
            divergence = F.kl_div(relation, target, log_target=True, reduction="none").sum(-1)  # [B, N]
        return mean_over_images(mean_over_kept(divergence, kept), kept)


def _log_relations(patches: Tensor, anchors: Tensor, kept: Tensor, temp: float) -> Tensor:
    """Return the logarithms of the relations [B, N, N] of patches [B, N, D] to the anchors [B, N, D] that are kept."""
    return (patches @ anchors.mT / temp).masked_fill(~kept[:, None], HIDDEN).log_softmax(-1)
