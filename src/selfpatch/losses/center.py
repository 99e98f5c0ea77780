"""Centre of the teacher's logits, and the base of losses that subtract one."""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import Fraction, settings
from selfpatch.core.distributed import all_reduce_mean
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.ops.cross_entropy import Scores, prototype_loss
from selfpatch.ops.sinkhorn import sinkhorn_center


@settings
class CenteringConfig:
    """Settings of losses against a teacher's distribution over prototypes."""

    student_temp: PositiveFloat = 0.1
    """Softmax temperature of the student."""
    center_momentum: Fraction = 0.9
    """Momentum of the centre, the moving average of the teacher's logits."""
    centering: Literal["center", "sinkhorn"] = "center"
    """Balance of the teacher's distributions: the moving average `center`, or `sinkhorn`, which assigns the tokens of a
    batch, of all processes, so that prototypes are used equally (Sinkhorn-Knopp, DINOv2)."""
    sinkhorn_iterations: PositiveInt = 3
    """Number of iterations of Sinkhorn-Knopp (sinkhorn only)."""


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
    """Base of losses against the teacher's centred distribution over prototypes.

    Args:
        num_prototypes: number of prototypes.
        config: student temperature, and kind of centre; that of Sinkhorn-Knopp has no state.
    """

    def __init__(self, num_prototypes: int, config: CenteringConfig) -> None:
        super().__init__()
        self.student_temp, self.sinkhorn_iterations = config.student_temp, config.sinkhorn_iterations
        self.center = Center(num_prototypes, config.center_momentum) if config.centering == "center" else None

    @torch.no_grad()
    def center_of(self, teacher: Scores, teacher_temp: float) -> Tensor:
        """Return what is subtracted from the teacher's logits, [K].

        A moving average is that of earlier steps. Sinkhorn-Knopp assigns the given rows, those of all processes, so
        that all prototypes are used equally (DINOv2).
        """
        if self.center is None:
            return sinkhorn_center(teacher, teacher_temp, self.sinkhorn_iterations)
        return self.center.center

    def sum_over_rows(self, student: Scores, teacher: Scores, weights: Tensor, teacher_temp: float) -> Tensor:
        """Return the weighted sum of the cross-entropies of student and teacher, row by row.

        The centre is computed from all rows, whatever their weight; arguments as for `prototype_loss`.
        """
        self.accumulate(teacher)
        temps = {"student_temp": self.student_temp, "teacher_temp": teacher_temp}
        return prototype_loss(student, teacher, self.center_of(teacher, teacher_temp), weights=weights, **temps)

    @torch.no_grad()
    def accumulate(self, teacher: Scores) -> None:
        """Collect the logits of a micro-batch for the moving average, if there is one."""
        if self.center is not None:
            self.center.accumulate(teacher.mean_logits())

    def update(self) -> None:
        """Move the centre, if it is a moving average; call it once per step, after the optimizer's."""
        if self.center is not None:
            self.center.update()
