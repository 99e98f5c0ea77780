"""iBOT: DINO, and the teacher's patch distributions behind masks (Zhou et al., arXiv 2111.07832)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.dino import DINOLoss
from selfpatch.losses.ibot import IBOTConfig, IBOTPatchLoss, PatchPrototypes
from selfpatch.models.heads import PrototypeHead
from selfpatch.ops.cross_entropy import Scores


class IBOT(Objective):
    """`DINOLoss` between image tokens, and `IBOTPatchLoss` between the patches of the same global crop.

    The student sees the global crops with patches hidden; the teacher sees them whole.
    """

    Config = IBOTConfig
    needs = Needs(local_crops=True, masks=True)
    loss_weights: ClassVar = {"image": 1.0, "masked_patch": 1.0}

    def __init__(self, dim: int, config: IBOTConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.image_loss, self.patch_loss = DINOLoss(config), IBOTPatchLoss(config)
        self.patch_prototypes = PatchPrototypes(config) if config.prototypes == "shared_by_teacher" else None

    def heads(self) -> dict[str, nn.Module]:
        """Return the projection head, and the patches' prototypes if they are separate."""
        heads: dict[str, nn.Module] = {"image": PrototypeHead(self.dim, self.config)}
        if self.config.prototypes == "separate":
            heads["masked_patch"] = PatchPrototypes(self.config)
        return heads

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"image": loss, "masked_patch": loss}`."""
        assert views.masks is not None
        with torch.no_grad():
            targets = teacher.heads["image"](teacher.image[: views.num_global])  # scores [G, B, K]
        predictions = student.heads["image"](student.image)  # scores [V, B, K]
        image = self.image_loss(predictions, targets, hp.teacher_temp)
        with torch.no_grad():
            patch_targets = self._patch_scores(teacher, teacher.heads.get("masked_patch"))  # [G*B, h, w, K]
        patch_predictions = self._patch_scores(student, student.heads.get("masked_patch", self.patch_prototypes))
        masks = views.masks.flatten(0, 1)  # [G*B, h, w]
        patch = self.patch_loss(patch_predictions, patch_targets, masks, hp.teacher_patch_temp)
        return {"image": image, "masked_patch": patch}

    def _patch_scores(self, side: EncoderOutput, prototypes: nn.Module | None) -> Scores:
        """Compare the global crops' patches with separate prototypes, or with the image tokens'."""
        scores = side.heads["image"](side.tokens_per_resolution[0].patches)
        return scores if prototypes is None else Scores(scores.bottleneck, prototypes())

    @torch.no_grad()
    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Return entropies of the teacher's distributions of image tokens, which show both ways of collapse."""
        return self.image_loss.meters(teacher.heads["image"](teacher.image), hp.teacher_temp)
