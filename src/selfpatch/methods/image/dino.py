"""DINO: self-distillation of the image token across views (Caron et al., arXiv 2104.14294)."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.dino import DINOConfig, DINOLoss
from selfpatch.models.heads import PrototypeHead


class DINO(Objective):
    """`DINOLoss` between the image tokens of the student's crops and of the teacher's global ones.

    The centre is computed from every view that the teacher sees, as in SelfPatch's released code.
    """

    Config = DINOConfig
    needs = Needs(local_crops=True)
    loss_weights: ClassVar = {"image": 1.0}

    def __init__(self, dim: int, config: DINOConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.loss = DINOLoss(config)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projection head of image tokens."""
        return {"image": PrototypeHead(self.dim, self.config)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"image": loss}`."""
        with torch.no_grad():
            targets = teacher.heads["image"](teacher.image)  # scores [V or G, B, K]
        predictions = student.heads["image"](student.image)
        return {"image": self.loss(predictions, targets, hp.teacher_temp, views.num_global)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return log K of the prototypes."""
        return {"image": math.log(self.config.num_prototypes)}

    @torch.no_grad()
    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Return entropies of the teacher's distributions, which show both ways of collapse."""
        return self.loss.meters(teacher.heads["image"](teacher.image), hp.teacher_temp)
