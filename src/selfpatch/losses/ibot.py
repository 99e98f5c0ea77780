"""iBOT's loss of masked patches (Zhou et al., arXiv 2111.07832)."""

from dataclasses import replace
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.losses.center import CenteredLoss
from selfpatch.losses.dino import DINOConfig
from selfpatch.models.heads import PrototypeHead, Prototypes
from selfpatch.ops.cross_entropy import Scores


@settings
class IBOTConfig(DINOConfig):
    """Settings of iBOT: its head and its losses."""

    num_prototypes: PositiveInt = 8192
    """Number of prototypes of image tokens, and of patches where both share them."""
    num_patch_prototypes: PositiveInt | None = None
    """Number of prototypes of patches where they are separate or untied. If None, as many as `num_prototypes`."""
    patch_bottleneck_dim: PositiveInt | None = None
    """Width of the output of an untied patch head. If None, `bottleneck_dim`."""
    prototypes: Literal["shared", "separate", "shared_by_teacher", "shared_by_student", "untied"] = "shared"
    """Prototypes `shared` by image tokens and patches (iBOT ViT-S, SERE), `separate`, or shared by one side alone:
    `shared_by_teacher` is the default of the released code, `shared_by_student` its fourth combination of flags. As
    released, the layers below are shared. `untied` heads share nothing (DINOv2)."""
    patch_loss_on: Literal["masked", "all"] = "masked"
    """Patches of masked crops that learn: the `masked` ones (iBOT), or `all` of them (iBOT++, arXiv 2604.12012)."""

    def __post_init__(self) -> None:
        if self.prototypes not in ("separate", "untied") and self.patch_prototypes != self.num_prototypes:
            raise ValueError(
                f"num_patch_prototypes is {self.num_patch_prototypes}, but {self.prototypes.replace('_', ' ')} "
                f"prototypes are {self.num_prototypes}; leave it out, or set prototypes to separate"
            )
        if self.prototypes != "untied" and self.patch_bottleneck_dim not in (None, self.bottleneck_dim):
            raise ValueError(
                f"patch_bottleneck_dim is {self.patch_bottleneck_dim}, but patches share the head of width "
                f"{self.bottleneck_dim}; leave it out, or set prototypes to untied"
            )

    @property
    def patch_prototypes(self) -> int:
        """Number of prototypes that patches are compared with."""
        return self.num_prototypes if self.num_patch_prototypes is None else self.num_patch_prototypes


def untied_patch_head(dim: int, config: IBOTConfig) -> PrototypeHead:
    """Return a head of patches that shares nothing with that of image tokens, for tokens of width `dim`."""
    bottleneck = config.patch_bottleneck_dim or config.bottleneck_dim
    return PrototypeHead(dim, replace(config, num_prototypes=config.patch_prototypes, bottleneck_dim=bottleneck))


class PatchPrototypes(nn.Module):
    """Prototypes of patches alone, for bottlenecks that come from the head of image tokens."""

    def __init__(self, config: IBOTConfig) -> None:
        super().__init__()
        trainable_gain = not config.norm_last_layer
        self.last_layer = Prototypes(config.patch_prototypes, config.bottleneck_dim, trainable_gain=trainable_gain)

    def forward(self) -> Tensor:
        """Return the prototypes [K, E]."""
        return self.last_layer()


class IBOTPatchLoss(CenteredLoss):
    """Cross-entropy between the teacher's and the student's distributions of masked patches, same view (eq. 2).

        for each view b:
            loss += mean over its masked patches i of
                    H(softmax((g_t(x[b, i]) - center) / teacher_temp), softmax(g_s(x_masked[b, i]) / student_temp))
        center = moving average of the mean of g_t over all patches, masked or not, in `update`

    With `centering="sinkhorn"` (DINOv2, arXiv 2304.07193) the teacher's distributions are assignments of Sinkhorn-Knopp
    over the masked patches of all processes. With `patch_loss_on="all"` (iBOT++, arXiv 2604.12012, which gives no
    weights) visible patches of masked views count as masked ones do; views without mask count 0 as before.

    Example:
        >>> config = IBOTConfig()
        >>> student_head, criterion = PrototypeHead(384, config), IBOTPatchLoss(config)
        >>> teacher_head = copy.deepcopy(student_head).requires_grad_(False)
        >>> loss = criterion(student_head(student_patches), teacher_head(teacher_patches), masks, teacher_temp=0.04)
        >>> loss.backward(), optimizer.step(), criterion.update()

    Args:
        config: number of prototypes, student temperature and momentum of the centre.
    """

    def __init__(self, config: IBOTConfig = IBOTConfig()) -> None:
        super().__init__(config.patch_prototypes, config)
        self.on = config.patch_loss_on

    def forward(self, student: Scores, teacher: Scores, masks: Tensor, teacher_temp: float) -> Tensor:
        """Return the loss, a scalar: the mean over the patches of a view that count, then over views.

        Args:
            student: scores of the student, who sees masked views: bottleneck [B, h, w, E] and prototypes [K, E].
            teacher: scores of the teacher, who sees them whole.
            masks: [B, h, w] bool, True where a patch is hidden from the student.
            teacher_temp: softmax temperature of the teacher's patches.
        """
        weights = self.weights(masks)
        if self.center is None:  # Sinkhorn-Knopp assigns the patches that count, and no others
            rows = weights.nonzero(as_tuple=True)
            student, teacher, weights = student.at(rows), teacher.at(rows), weights[rows]
        return self.sum_over_rows(student, teacher, weights, teacher_temp)

    def weights(self, masks: Tensor) -> Tensor:
        """Return the weight of each patch, float32, 0 where it does not count; both [B, h, w]."""
        return masked_patch_weights(masks if self.on == "masked" else masks | masks.any((1, 2), keepdim=True))


def masked_patch_weights(masks: Tensor) -> Tensor:
    """Return the weight of each patch in the mean over the masked patches of a view, then over all views.

    Masks are [B, h, w] bool, weights [B, h, w] float32. A view without masked patches counts in the mean over views.
    """
    return masks / masks.sum((1, 2), keepdim=True).clamp(min=1) / len(masks)
