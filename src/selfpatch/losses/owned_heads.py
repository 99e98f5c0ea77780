"""Base of losses that own the heads of student and teacher."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selfpatch.models.layers.deferred_state import deferred_states
from selfpatch.models.layers.ema import ema_update


class LossWithHeads(nn.Module):
    """Loss that owns the student's heads and the teacher's moving average of them, for any training loop.

    Attributes:
        student: the student's heads by name; their parameters are trained.
        teacher: copies of them without gradient, moved by `update`.
        num_updates: number of steps so far.
    """

    num_updates: Tensor

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.student = nn.ModuleDict(heads)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Finish a step: update centres and memory banks, then move the teacher's heads towards the student's.

        Args:
            momentum: weight of the teacher's own parameters, such as 0.996; the same as for the backbones.
        """
        for state in deferred_states(self):
            state.update()
        ema_update(self.teacher, self.student, momentum)
        self.num_updates += 1
