"""Gram anchoring: patch similarities stay close to those of an earlier teacher (DINOv3, arXiv 2508.10104)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.ops.contrast import l2_normalize


@settings
class GramConfig:
    """Settings of Gram anchoring; defaults are the released ones."""

    normalise: bool = True
    """Normalise tokens to length 1, so that similarities are cosines."""
    scope: Literal["image", "batch"] = "image"
    """Tokens that are compared: those of one image, or those of the whole batch of this process."""
    negatives: Literal["keep", "drop", "drop_teacher"] = "keep"
    """Negative similarities: kept, or set to 0 on both sides (`drop`) or in the teacher alone (`drop_teacher`)."""


class GramLoss(nn.Module):
    """Mean squared difference between the Gram matrices of student and teacher (section 4.2).

        for each image:
            G_s, G_t = X_s X_s^T, X_t X_t^T      with the rows of X of length 1
            loss += mean over all pairs of patches of (G_s - G_t)^2

    The paper's equation has a sum; the released code has the mean. The teacher is an earlier state of the EMA teacher;
    its tokens may come from images of twice the size, see `resize_patches`.

    Example:
        >>> criterion = GramLoss()
        >>> teacher_patches = resize_patches(gram_teacher_map, (14, 14)).flatten(1, 2)
        >>> loss = criterion(student_patches, teacher_patches)    # [B, N, D] each

    Args:
        config: normalisation, scope and negatives.
    """

    def __init__(self, config: GramConfig = GramConfig()) -> None:
        super().__init__()
        self.config = config

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: [B, N, D] patches after the final norm.
            teacher: [B, N, D'] patches at the same positions, which take no gradient.

        Raises:
            ValueError: student and teacher have other numbers of patches.
        """
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f"the student has patches {list(student.shape[:2])} and the teacher {list(teacher.shape[:2])}; "
                "resize the teacher's map with resize_patches"
            )
        difference = self._gram(student, self.config.negatives == "drop") - self._gram(
            teacher.detach(), self.config.negatives != "keep"
        )
        return difference.square().mean()

    def _gram(self, patches: Tensor, non_negative: bool) -> Tensor:
        """Return the similarities [B, N, N], or [B * N, B * N] of a batch, in float32."""
        x = l2_normalize(patches) if self.config.normalise else patches.float()
        x = x.flatten(0, 1) if self.config.scope == "batch" else x
        with torch.autocast(x.device.type, enabled=False):
            gram = x @ x.mT
        return gram.clamp(min=0) if non_negative else gram


def resize_patches(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize maps of patches [B, h, w, D] to another grid, bicubic without antialias, as DINOv3 does; float32."""
    resized = F.interpolate(patches.permute(0, 3, 1, 2).float(), grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)
