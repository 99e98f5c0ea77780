"""Centre of the teacher's logits, and the base of losses that own one."""

import torch
from torch import Tensor, nn

from selfpatch.core.distributed import all_reduce_mean
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.ops.cross_entropy import Scores, prototype_loss


class Center(DeferredState):
    """Moving average of the teacher's logits, subtracted from them against collapse (DINO, arXiv 2104.14294, eq. 4).

    Attributes:
        center: [K], 0 at first.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def accumulate(self, mean_logits: Tensor) -> None:
        """Collect the mean logits [K] of one micro-batch of this process."""
        self.accumulated.append(mean_logits)

    def update(self) -> None:
        """Move the centre towards the mean logits of the global batch."""
        if self.accumulated:
            mean = all_reduce_mean(torch.stack(self.accumulated).mean(0))
            self.center.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self.discard()


class CenteredLoss(nn.Module):
    """Base of losses against the teacher's centred distribution over prototypes."""

    def __init__(self, num_prototypes: int, student_temp: float, center_momentum: float) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center = Center(num_prototypes, center_momentum)

    def sum_over_rows(self, student: Scores, teacher: Scores, weights: Tensor, teacher_temp: float) -> Tensor:
        """Return the weighted sum of the cross-entropies of student and teacher, row by row.

        The centre is computed from all rows, whatever their weight; arguments as for `prototype_loss`.
        """
        with torch.no_grad():
            self.center.accumulate(teacher.mean_logits())
        temps = {"student_temp": self.student_temp, "teacher_temp": teacher_temp}
        return prototype_loss(student, teacher, self.center.center, weights=weights, **temps)

    def update(self) -> None:
        """Move the centre; call it once per step, after the optimizer's."""
        self.center.update()
