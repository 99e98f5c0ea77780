"""iBOT: DINO, and the teacher's patch distributions behind masks (Zhou et al., arXiv 2111.07832)."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.dino import DINOLoss
from selfpatch.losses.ibot import IBOTConfig, IBOTPatchLoss, PatchPrototypes, untied_patch_head
from selfpatch.models.heads import PrototypeHead
from selfpatch.ops.cross_entropy import Scores


class IBOT(Objective):
    """`DINOLoss` between image tokens, and `IBOTPatchLoss` between the patches of the same global crop.

    The student sees the global crops with patches hidden; the teacher sees them whole.

    The setting `prototypes` stands for the flags of the released code (bytedance/ibot, MCG-NKU/SERE):

    | `prototypes` | `--shared_head` | `--shared_head_teacher` | patches are compared with | published models |
    |---|---|---|---|---|
    | `shared` | true | true | the image tokens' prototypes | iBOT ViT-S and Swin-T, SERE ViT-S and ViT-B |
    | `separate` | false | false | prototypes of their own | none known |
    | `untied` | (DINOv2, arXiv 2304.07193) | | a head and prototypes of their own | DINOv2 ViT-L and ViT-g |
    | `shared_by_teacher` | false | true | student: its own; teacher: its image tokens' | none known |
    | `shared_by_student` | true | false | student: its image tokens'; teacher: its own | none known |

    With `shared_by_teacher`, the default of the released code, the first teacher takes the student's *patch* prototypes
    as its only ones, which then follow the student's image-token prototypes: nothing follows the patch prototypes. With
    `shared_by_student`, the teacher's patch prototypes stay as they are initialised. The README of iBOT does not give
    the flags of its ViT-B and ViT-L.
    """

    Config = IBOTConfig
    needs = Needs(local_crops=True, masks=True)
    loss_weights: ClassVar = {"image": 1.0, "masked_patch": 1.0}

    def __init__(self, dim: int, config: IBOTConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.image_loss, self.patch_loss = DINOLoss(config), IBOTPatchLoss(config)
        self.patch_prototypes = PatchPrototypes(config) if config.prototypes.startswith("shared_by") else None
        if self.patch_prototypes is not None and config.prototypes == "shared_by_student":
            self.patch_prototypes.requires_grad_(False)  # nothing trains or moves them

    def heads(self) -> dict[str, nn.Module]:
        """Return the projection head, and the patches' prototypes if they are separate."""
        heads: dict[str, nn.Module] = {"image": PrototypeHead(self.dim, self.config)}
        if self.config.prototypes == "separate":
            heads["masked_patch"] = PatchPrototypes(self.config)
        elif self.config.prototypes == "untied":
            heads["masked_patch"] = untied_patch_head(self.dim, self.config)
        return heads

    def start_teacher(self, heads: Mapping[str, nn.Module]) -> None:
        """Start the prototypes that only one side shares as the released code does; see the table above."""
        if self.patch_prototypes is None:
            return
        of_patches, of_images = self.patch_prototypes.last_layer, heads["image"].get_submodule("last_layer")
        if self.config.prototypes == "shared_by_teacher":
            of_images.load_state_dict(of_patches.state_dict())
        else:
            of_patches.load_state_dict(of_images.state_dict())

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"image": loss, "masked_patch": loss}`."""
        assert views.masks is not None
        with torch.no_grad():
            targets = teacher.heads["image"](teacher.image[: views.num_global])  # scores [G, B, K]
        predictions = student.heads["image"](student.image)  # scores [V, B, K]
        image = self.image_loss(predictions, targets, hp.teacher_temp)
        patches = [side.tokens_per_resolution[0].patches for side in (student, teacher)]  # [G*B, h, w, D]
        weights = self.patch_loss.weights(views.masks.flatten(0, 1))  # [G*B, h, w]
        if self.config.centering == "sinkhorn":  # the heads see no patches that do not count
            # The host waits once; at each use of a mask it would. A dry run has no values, and counts all patches.
            rows = slice(None) if in_dry_run() else weights.nonzero(as_tuple=True)
            patches, weights = [x[rows] for x in patches], weights[rows]
        with torch.no_grad():
            patch_targets = self.patch_scores(teacher, patches[1], "teacher")  # [..., K]
        patch_predictions = self.patch_scores(student, patches[0], "student")
        patch = self.patch_loss.sum_over_rows(patch_predictions, patch_targets, weights, hp.teacher_patch_temp)
        return {"image": image, "masked_patch": patch}

    def patch_scores(self, side: EncoderOutput, patches: Tensor, role: Literal["student", "teacher"]) -> Scores:
        """Return the scores [..., K] of patches [..., D] against the prototypes of this side."""
        if self.config.prototypes == "untied":
            scores: Scores = side.heads["masked_patch"](patches)
            return scores
        only_here = self.config.prototypes == {"student": "shared_by_teacher", "teacher": "shared_by_student"}[role]
        own = self.patch_prototypes if only_here else side.heads.get("masked_patch")
        scores = side.heads["image"](patches)
        return scores if own is None else Scores(scores.bottleneck, own())

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return log K of the prototypes; that of patches times the share of views with a mask, as others count 0."""
        assert views.masks is not None
        share_masked = views.masks.flatten(2).any(-1).float().mean().item()
        return {
            "image": math.log(self.config.num_prototypes),
            "masked_patch": share_masked * math.log(self.config.patch_prototypes),
        }

    @torch.no_grad()
    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Return entropies of the teacher's distributions of image tokens, which show both ways of collapse."""
        return self.image_loss.meters(teacher.heads["image"](teacher.image), hp.teacher_temp)
