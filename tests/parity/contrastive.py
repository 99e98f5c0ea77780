"""Replay of the steps of MoBY and MoCo-v3 through the project's objectives, with one linear layer as encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.config.sections import OptimizerConfig
from selfpatch.core.types import EncoderOutput, Objective, Views
from selfpatch.methods.image.moby import MoBY, MoBYConfig
from selfpatch.methods.image.moco_v3 import MoCoV3, MoCoV3Config
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.training.optim import Schedule
from tests.parity.check import Check, compare, compare_norms

RELEASED_MLP = {"linear_hidden.1": "0", "linear_hidden.2": "1", "linear_out": "3"}
"""Layers of MoBY's released heads -> layers of ours."""


def replay_moby(settings: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    config = MoBYConfig(
        hidden_dim=settings["inner_dim"],
        out_dim=settings["out_dim"],
        queue_size=settings["queue"],
        temp=settings["temperature"],
    )
    objective = MoBY(settings["feature_dim"], settings["batch"], config)
    queues = (objective.queue1, objective.queue2)
    for view, queue in enumerate(queues):
        queue.keys.copy_(t[f"moby.initial.queue{view + 1}"].T)
    run = _Replay("moby", objective, t)
    run.load(run.student["encoder"], "encoder.lin")
    run.load(run.teacher["encoder"], "encoder_k.lin")
    run.load(run.student["projector"], "projector", RELEASED_MLP)
    run.load(run.teacher["projector"], "projector_k", RELEASED_MLP)
    run.load(objective.predictor, "predictor", RELEASED_MLP)
    yield from run.steps(settings)
    yield from run.final_weights("encoder.lin.weight", "encoder_k.lin.weight")
    for view, queue in enumerate(queues):
        yield compare(f"moby queue {view + 1}", queue.keys, t[f"moby.final.queue{view + 1}"].T, 1e-5)


def replay_moco_v3(settings: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    config = MoCoV3Config(
        projector_hidden_dim=settings["mlp_dim"],
        out_dim=settings["dim"],
        predictor_hidden_dim=settings["mlp_dim"],
        temp=settings["temperature"],
    )
    objective = MoCoV3(settings["feature_dim"], config)
    run = _Replay("mocov3", objective, t)
    for side, released in ((run.student, "base_encoder"), (run.teacher, "momentum_encoder")):
        run.load(side["encoder"], f"{released}.body")
        run.load(side["projector"], f"{released}.head")
    run.load(objective.predictor, "predictor")
    yield from run.steps(settings)
    yield from run.final_weights("base.body.weight", "momentum.body.weight")


class _Replay:
    """Student and teacher around one objective, and the recorded tensors that they start from."""

    def __init__(self, name: str, objective: Objective, tensors: dict[str, Tensor]) -> None:
        self.name, self.objective, self.tensors = name, objective.train(), tensors
        width = tensors[f"{name}.step0.x1"].shape[1]
        self.student = nn.ModuleDict({"encoder": nn.Linear(width, width), **objective.heads()})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def load(self, module: nn.Module, prefix: str, layers: dict[str, str] | None = None) -> None:
        """Load the recorded initial weights below a prefix, without running statistics."""
        prefix = f"{self.name}.initial.{prefix}."
        state = {}
        for key, tensor in self.tensors.items():
            layer, _, leaf = key.removeprefix(prefix).rpartition(".")
            if key.startswith(prefix) and leaf in ("weight", "bias"):
                ours = layers[layer] if layers else layer
                state[f"{ours}.{leaf}" if ours else leaf] = tensor
        module.load_state_dict(state)

    def steps(self, settings: dict[str, Any]) -> Iterator[Check]:
        """Run each step: the teacher moves, then loss and plain SGD, then the queues take in the keys."""
        schedule = Schedule(
            OptimizerConfig(teacher_momentum=settings["base_momentum"]), 1, settings["total_steps"], batch_size=256
        )
        trained = [*self.student.parameters(), *self.objective.parameters()]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for step, expected in enumerate(settings["steps"]):
            hp = schedule(step)
            yield compare(f"{self.name} step {step} momentum", hp.teacher_momentum, expected["momentum"], 1e-9)
            self._move_teacher(hp.teacher_momentum)
            views = [self.tensors[f"{self.name}.step{step}.x{view}"] for view in (1, 2)]
            student, teacher = self._encode(self.student, views), self._encode(self.teacher, views)
            loss = self.objective(student, teacher, _views(len(views[0])), hp)["contrast"]
            yield compare(f"{self.name} step {step} loss", loss, expected["loss"], 1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for state in self.objective.modules():
                if isinstance(state, DeferredState):
                    state.update()

    def final_weights(self, student: str, teacher: str) -> Iterator[Check]:
        for side, module, key in (("student", self.student, student), ("teacher", self.teacher, teacher)):
            got, expected = module["encoder"].weight.detach(), self.tensors[f"{self.name}.final.{key}"]
            yield compare_norms(f"{self.name} final weight of the {side}", {"": got}, {"": expected}, 1e-5)

    @torch.no_grad()
    def _move_teacher(self, momentum: float) -> None:
        for average, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.lerp_(other, 1 - momentum)

    def _encode(self, side: nn.ModuleDict, views: list[Tensor]) -> EncoderOutput:
        return EncoderOutput(torch.stack([side["encoder"](view) for view in views]), (), dict(side.items()), None)


def _views(batch: int) -> Views:
    """Two global crops of each image, which the objectives do not read."""
    return Views(torch.empty(2, batch, 3, 1, 1), None, torch.zeros(2, batch, 5), torch.arange(batch))
