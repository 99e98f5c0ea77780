"""Retention: features stay near those of the anchor, against forgetting."""

from typing import ClassVar

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.distill import PatchDistillationConfig, patch_distance, resize_bilinear


class Retain(Objective):
    """Regress the student's patches in a global crop onto the anchor's.

    Less-forgetting learning (Jung et al., arXiv 1607.00122) keeps the last features near those of the initial network,
    by their squared distance. Departures: features are those of each patch, and the distance is that of patch matching
    (`patch_distance`), without a projection; `retain: {cosine: 0, smooth_l1: 0, mse: 1}` is the published one.
    """

    Config = PatchDistillationConfig
    needs: ClassVar[Needs] = Needs(teacher_on_global_crops=False, anchor=True)
    loss_weights: ClassVar = {"retain": 1.0}

    def __init__(self, dim: int, anchor_dim: int, config: PatchDistillationConfig) -> None:
        super().__init__()
        if dim != anchor_dim:
            raise ValueError(
                f"retain keeps features near those of the frozen encoder, but these have width {anchor_dim} and the "
                f"student's {dim}; use --objective distill, which projects them, or leave --teacher out"
            )
        self.config = config

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"retain": loss}`, the mean over global crops, images and patches; `teacher` is the anchor."""
        patches, target = (side.tokens_per_resolution[0].patches for side in (student, teacher))  # [G*B, h, w, D]
        return {"retain": patch_distance(resize_bilinear(patches, target.shape[1:3]), target, self.config)}
