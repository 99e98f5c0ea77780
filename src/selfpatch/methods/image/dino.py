"""DINO: self-distillation of the image token across views (Caron et al., arXiv 2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.losses.center import Center
from selfpatch.models.heads import PrototypeHead
from selfpatch.ops.collapse import distribution_meters
from selfpatch.ops.cross_entropy import prototype_cross_view_loss


class DINO(Objective):
    """The teacher's distribution of each global crop is to be predicted from every other crop of the same image.

    Args:
        dim: width of the image token.
        num_prototypes: K.
        hidden_dim, bottleneck: widths inside the head.
        head_norm: batch normalisation in the head; helps small heads.
        norm_last_layer: keep the prototypes' norm at 1.
    """

    needs: ClassVar[Needs] = Needs(local_crops=True)
    loss_weights: ClassVar[Mapping[str, float]] = {"image": 1.0}

    def __init__(
        self,
        dim: int,
        *,
        num_prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center = Center(num_prototypes, center_momentum)
        self._make_head = partial(
            PrototypeHead,
            dim,
            num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            norm=head_norm,
            trainable_gain=not norm_last_layer,
        )

    def heads(self) -> dict[str, nn.Module]:
        return {"image": self._make_head()}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"image": loss}`. The centre takes in every view that the teacher saw, as in SelfPatch's released code."""
        with torch.no_grad():
            scores = teacher.heads["image"](teacher.image)  # [V or G, B, K]
            self.center.accumulate(scores.mean_logits())
        loss = prototype_cross_view_loss(
            student.heads["image"](student.image),
            scores.select(views.num_global),
            self.center.center,
            student_temp=self.student_temp,
            teacher_temp=hp.teacher_temp,
        )
        return {"image": loss}

    @torch.no_grad()
    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """How far the teacher's distributions are from both ways of collapse."""
        logits = teacher.heads["image"](teacher.image).logits().flatten(0, -2)
        return distribution_meters(logits, hp.teacher_temp, self.center.center)
