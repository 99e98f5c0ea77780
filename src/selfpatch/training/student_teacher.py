"""Student and teacher with the objectives between them, as one module."""

import functools
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.models.anchor import Anchor
from selfpatch.models.branch import Branch
from selfpatch.models.layers.batch_norm import ema_update_statistics
from selfpatch.models.layers.deferred_state import deferred_states
from selfpatch.models.layers.ema import ema_update
from selfpatch.ops.images import normalise
from selfpatch.training.collapse import UNIFORM
from selfpatch.training.meters import token_meters


def union_of_needs(objectives: Mapping[str, Objective]) -> Needs:
    """Return which views and masks are made for all objectives together, and which views the teacher sees."""
    return functools.reduce(operator.or_, (objective.needs for objective in objectives.values()))


class StudentTeacher(nn.Module):
    """A student, its teacher, an image-level method and any patch-level objectives.

    A step is one forward pass of the whole module, which DDP wraps or FSDP2 shards.

    Args:
        student: backbone, and the pool and heads of the objectives.
        objectives: the image-level method, then the patch-level objectives, by name.
        loss_weights: weight of each loss by its name.
        anchor: what some objectives compare the student with, instead of the teacher.

    Attributes:
        teacher_form: the teacher without values while its parameters are sharded (`training.parallel`), within a tuple,
            so that it is no part of the network.
    """

    teacher_form: tuple[Branch, ...] = ()

    def __init__(
        self,
        student: Branch,
        objectives: Mapping[str, Objective],
        loss_weights: Mapping[str, float],
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = student.make_teacher()
        self.anchor = anchor
        for objective in objectives.values():
            objective.start_teacher(dict(self.teacher.heads.items()))
        self.objectives = nn.ModuleDict(objectives)
        self.loss_weights = dict(loss_weights)
        self.needs = union_of_needs(objectives)
        if self.needs.class_attention:
            self.teacher.backbone.keep_class_attention()

    def forward(self, views: Views, hp: Hyperparameters, with_meters: bool = False) -> dict[str, Tensor]:
        """Return the weighted sum of the losses as `loss`, each unweighted loss, and the meters if `with_meters`."""
        crops = self._needed_crops(views)
        student_crops = [crops[name] for name in ("global_crops", "local_crops") if name in crops]
        clean_crops = crops.get("clean_crops")
        sees = {"global_crops": self.needs.teacher_on_global_crops, "local_crops": self.needs.teacher_on_local_crops}
        teacher_crops = [crops[name] for name, seen in sees.items() if seen and name in crops]
        with torch.no_grad():
            teacher = self.teacher(teacher_crops, pair_crops=clean_crops)
        anchor = self.anchor(views) if self.anchor is not None and hp.step >= self.anchor.first_step else None
        masks = views.masks if self.needs.masks else None
        student = self.student(student_crops, masks, crops.get("contained_crops"))
        losses: dict[str, Tensor] = {}
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            if objective.needs.anchor and anchor is None:  # before its first refresh
                losses |= dict.fromkeys(objective.loss_weights, 0 * student.tokens_per_resolution[0].patches.sum())
            else:
                losses |= objective(student, anchor if objective.needs.anchor else teacher, views, hp)
        total = torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        measured = teacher if teacher_crops or clean_crops is not None else student
        values = {name: loss.detach() for name, loss in losses.items()}  # only the total is differentiated
        return {"loss": total, **values, **(self._meters(measured, hp) if with_meters else {})}

    def _needed_crops(self, views: Views) -> dict[str, Tensor]:
        """Return the crops [V, B, C, S, S'] that are needed and there, normalised, by their names in `Views`."""
        backbone, needs = self.student.backbone, self.needs
        needed = {
            "global_crops": needs.global_crops,
            "local_crops": needs.local_crops,
            "clean_crops": needs.pairs,
            "contained_crops": needs.pairs,
        }
        there = {name: crops for name, crops in views.tensors().items() if needed.get(name)}
        return {name: normalise(crops, backbone.mean, backbone.std) for name, crops in there.items()}

    @torch.no_grad()
    def _meters(self, seen: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Return the meters of the teacher's output for a batch, or of the student's if nothing asks the teacher."""
        meters = token_meters(seen)
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            meters |= objective.meters(seen, hp)
        return meters

    def uniform_losses(self, micro_batches: Sequence[Views]) -> dict[str, Tensor]:
        """Return the value of each loss for uniform predictions as `uniform_NAME`, the mean over micro-batches."""
        values: dict[str, list[float]] = {}
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            for views in micro_batches:
                for name, value in objective.uniform_losses(views).items():
                    values.setdefault(UNIFORM + name, []).append(value)
        device = micro_batches[0].device
        return {name: torch.tensor(of_batches, device=device).mean() for name, of_batches in values.items()}

    def finish_step(self, teacher_momentum: float, ok: Tensor | None = None) -> None:
        """Update centres and queues, and the teacher: teacher <- m * teacher + (1 - m) * student.

        Where `ok`, a bool scalar on the device, is False, nothing changes. If None, the step is known to be finite.
        """
        for state in deferred_states(self):
            if ok is None:
                state.update()
            else:
                state.update_where(ok)
        ema_update(self.teacher, self.student, teacher_momentum, ok)
        if not self.needs.teacher_encodes:
            ema_update_statistics(self.teacher, self.student, teacher_momentum, ok)

    def discard_step(self) -> None:
        """Forget what centres and queues accumulated in a step that was not finite."""
        for state in deferred_states(self):
            state.discard()
