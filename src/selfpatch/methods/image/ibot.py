"""iBOT: DINO, and the teacher's patch distributions behind masks (Zhou et al., arXiv 2111.07832)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.losses.center import Center
from selfpatch.models.heads import PatchPrototypes, PrototypeHead
from selfpatch.ops.collapse import distribution_meters
from selfpatch.ops.cross_entropy import Scores, prototype_cross_view_loss, prototype_loss


class IBOT(Objective):
    """The student sees global crops with patches hidden, and is to predict what the teacher, who sees all of them,
    makes of the hidden ones; of the image tokens it learns as in DINO.

        for each global crop of each image:
            masked_patch += mean over its masked patches i of
                            H(softmax((g_t(patch_i) - c_patch) / tau_patch), softmax(g_s(patch_i) / tau_s))
        image = DINO's loss between the image tokens of different crops

    Args:
        dim: width of image and patch tokens.
        num_prototypes: K of image tokens, and of patches where the prototypes are shared.
        num_patch_prototypes: K of patches where they have prototypes of their own; None: as many as `num_prototypes`.
        prototypes: `shared` by image tokens and patches; `separate`; or `shared_by_teacher`: the student's patches have
            their own, and the teacher compares its patches with those of its image tokens (the ViT-B of the papers).
            The layers below are shared in all cases, as in the released code.
        hidden_dim, bottleneck_dim, head_norm, norm_last_layer: as in DINO.
    """

    needs: ClassVar[Needs] = Needs(local_crops=True, masks=True)
    loss_weights: ClassVar[Mapping[str, float]] = {"image": 1.0, "masked_patch": 1.0}

    def __init__(
        self,
        dim: int,
        *,
        num_prototypes: int = 8192,
        num_patch_prototypes: int | None = None,
        prototypes: Literal["shared", "separate", "shared_by_teacher"] = "shared",
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        num_patch = num_prototypes if num_patch_prototypes is None else num_patch_prototypes
        if prototypes not in ("shared", "separate", "shared_by_teacher"):
            raise ValueError(f"ibot.prototypes is {prototypes!r}; use 'shared', 'separate' or 'shared_by_teacher'")
        if prototypes != "separate" and num_patch != num_prototypes:
            raise ValueError(
                f"ibot.num_patch_prototypes is {num_patch}, but {prototypes.replace('_', ' ')} prototypes are "
                f"{num_prototypes}; leave it out, or set ibot.prototypes to separate"
            )
        self.student_temp = student_temp
        self.center = Center(num_prototypes, center_momentum)
        self.patch_center = Center(num_patch, center_momentum)
        make_prototypes = partial(PatchPrototypes, num_patch, bottleneck_dim, trainable_gain=not norm_last_layer)
        self._make_patch_prototypes = make_prototypes if prototypes == "separate" else None
        self.patch_prototypes = make_prototypes() if prototypes == "shared_by_teacher" else None
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
        heads: dict[str, nn.Module] = {"image": self._make_head()}
        if self._make_patch_prototypes is not None:
            heads["masked_patch"] = self._make_patch_prototypes()
        return heads

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"image": loss, "masked_patch": loss}`."""
        assert views.masks is not None
        with torch.no_grad():
            image_scores = teacher.heads["image"](teacher.image[: views.num_global])  # [G, B, K]
            self.center.accumulate(image_scores.mean_logits())
        image = prototype_cross_view_loss(
            student.heads["image"](student.image),  # [V, B, K]
            image_scores,
            self.center.center,
            student_temp=self.student_temp,
            teacher_temp=hp.teacher_temp,
        )
        masks = views.masks.flatten(0, 1)  # [G*B, h, w]
        return {"image": image, "masked_patch": self._masked_patch_loss(student, teacher, masks, hp.teacher_patch_temp)}

    def _masked_patch_loss(self, student: EncoderOutput, teacher: EncoderOutput, masks: Tensor, temp: float) -> Tensor:
        with torch.no_grad():
            scores = self._patch_scores(teacher, teacher.heads.get("masked_patch"))  # [G*B, h, w, K]
            self.patch_center.accumulate(scores.mean_logits())  # over all patches, masked or not
        own = student.heads.get("masked_patch", self.patch_prototypes)
        return prototype_loss(
            self._patch_scores(student, own),
            scores,
            self.patch_center.center,
            student_temp=self.student_temp,
            teacher_temp=temp,
            weights=masks / masks.sum((1, 2), keepdim=True).clamp(min=1) / len(masks),
        )

    def _patch_scores(self, side: EncoderOutput, prototypes: nn.Module | None) -> Scores:
        """The global crops' patches against prototypes of their own, or those of the image tokens."""
        scores = side.heads["image"](side.tokens_per_resolution[0].patches)
        return scores if prototypes is None else Scores(scores.bottleneck, prototypes())

    @torch.no_grad()
    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """How far the teacher's distributions of image tokens are from both ways of collapse."""
        logits = teacher.heads["image"](teacher.image).logits().flatten(0, -2)
        return distribution_meters(logits, hp.teacher_temp, self.center.center)
