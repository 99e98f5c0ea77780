"""DINO's loss: cross-view self-distillation over prototypes (Caron et al., arXiv 2104.14294)."""

import torch
from torch import Tensor

from selfpatch.config.schema import settings
from selfpatch.losses.center import CenteredLoss, CenteringConfig
from selfpatch.models.heads import PrototypeHeadConfig
from selfpatch.ops.collapse import distribution_meters
from selfpatch.ops.cross_entropy import Scores, prototype_cross_view_loss


@settings
class DINOConfig(CenteringConfig, PrototypeHeadConfig):
    """Settings of DINO: its head and its loss."""


class DINOLoss(CenteredLoss):
    """Cross-entropy between the teacher's distribution of one view and the student's of every other (eq. 1 to 4).

        p_t = softmax((g_t(x_t) - center) / teacher_temp)     for each of the teacher's G views, without gradient
        p_s = softmax(g_s(x_s) / student_temp)                for each of the student's V views
        loss = mean over t != s and over images of H(p_t, p_s)
        center = moving average of the mean of g_t(x)         in `update`, once per step

    With `centering="sinkhorn"` (DINOv2, arXiv 2304.07193) p_t is the assignment of Sinkhorn-Knopp over all G views of
    the batch, of all processes.

    Example:
        >>> config = DINOConfig(num_prototypes=4096)
        >>> student_head, criterion = PrototypeHead(384, config), DINOLoss(config)
        >>> teacher_head = copy.deepcopy(student_head).requires_grad_(False)
        >>> loss = criterion(student_head(student_cls), teacher_head(teacher_cls), teacher_temp=0.04)
        >>> loss.backward(), optimizer.step(), criterion.update()

    Args:
        config: number of prototypes, student temperature and momentum of the centre.
    """

    def __init__(self, config: DINOConfig = DINOConfig()) -> None:
        super().__init__(config.num_prototypes, config)

    def forward(self, student: Scores, teacher: Scores, teacher_temp: float, num_global: int | None = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: scores of the student's V views, the global ones first, as a `PrototypeHead` returns them:
                bottleneck [V, B, E] and prototypes [K, E].
            teacher: scores of the teacher's views, the same global ones first. The centre is computed from all.
            teacher_temp: softmax temperature of the teacher.
            num_global: number of the teacher's views that are targets, G. If None, all are.
        """
        self.accumulate(teacher)
        targets = teacher if num_global is None else teacher.select(num_global)
        center = self.center_of(targets, teacher_temp)
        temps = {"student_temp": self.student_temp, "teacher_temp": teacher_temp}
        return prototype_cross_view_loss(student, targets, center, **temps)

    @torch.no_grad()
    def meters(self, teacher: Scores, teacher_temp: float) -> dict[str, Tensor]:
        """Return entropies of the teacher's distributions, which show both ways of collapse."""
        return distribution_meters(teacher.logits().flatten(0, -2), teacher_temp, self.center_of(teacher, teacher_temp))
