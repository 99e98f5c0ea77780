"""Gram anchoring: the similarities of patches stay near those of the anchor (DINOv3, arXiv 2508.10104)."""

from typing import ClassVar

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.gram import GramConfig, GramLoss, resize_patches


class Gram(Objective):
    """Compare the similarities of the student's patches in a global crop with those of the anchor's: `GramLoss`.

    The anchor's map is resized to the student's grid (bicubic) before its tokens are normalised. Hidden patches of a
    masked student count like all others. DINOv3's anchor is an early teacher that the teacher replaces every 10,000
    steps, three times at most (`anchor.refresh_every`), and sees clean crops of twice the size (`anchor.size`,
    `anchor.colours`).
    """

    Config = GramConfig
    needs: ClassVar[Needs] = Needs(teacher_on_global_crops=False, anchor=True)
    loss_weights: ClassVar = {"gram": 1.0}

    def __init__(self, config: GramConfig) -> None:
        super().__init__()
        self.loss = GramLoss(config)

    def check_grid(self, crops: str, h: int, w: int) -> None:
        """Raise ValueError if crops are a single patch, which is similar to nothing else."""
        if h * w < 2:
            raise ValueError("gram compares the patches of a crop, but crops are one patch only; use larger crops")

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"gram": loss}`, the mean over global crops and images; `teacher` is the anchor."""
        patches, target = (side.tokens_per_resolution[0].patches for side in (student, teacher))  # [G*B, h, w, D]
        grid = patches.shape[1], patches.shape[2]
        if target.shape[1:3] != grid:
            target = resize_patches(target, grid)
        return {"gram": self.loss(patches.flatten(1, 2), target.flatten(1, 2))}
