"""The smallest pretrainer and batch that still have everything: two resolutions, a head for images, one for patches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.build import make_pretrainer
from selfpatch.config import RunConfig
from selfpatch.optim import parameter_groups
from selfpatch.pretraining import Pretrainer
from selfpatch.types import Hyperparameters, Views

SETTINGS: dict[str, Any] = {
    "method": "dino",
    "objective": "selfpatch",
    "model": "vit_tiny",
    "patch_size": 4,
    "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0},
    "crops": {"global_size": 16, "local_size": 12, "num_local": 2},
    "dino": {"num_prototypes": 24, "hidden": 16, "bottleneck": 8},
    "selfpatch": {"num_prototypes": 12, "hidden": 16, "bottleneck": 8},
}


def tiny_config(**settings: Any) -> RunConfig:
    return RunConfig().override(SETTINGS).override(settings)


def tiny_pretrainer(**settings: Any) -> Pretrainer:
    """In training mode, its weights larger than at initialisation, so that losses and gradients are not nearly flat."""
    pretrainer, _ = make_pretrainer(tiny_config(**settings))
    generator = torch.manual_seed(7)
    with torch.no_grad():
        for parameter in pretrainer.student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        pretrainer.teacher.load_state_dict(pretrainer.student.state_dict())
    return pretrainer.train()


def tiny_views(batch: int, seed: int = 0) -> Views:
    generator = torch.manual_seed(seed)

    def crops(views: int, size: int) -> Tensor:
        return torch.randint(256, (views, batch, 3, size, size), generator=generator, dtype=torch.uint8)

    return Views(crops(2, 16), crops(2, 12), torch.zeros(4, batch, 5), torch.arange(batch))


def part_of(views: Views, images: slice) -> Views:
    """The same views of some of the images."""
    assert views.local_crops is not None
    return Views(
        views.global_crops[:, images], views.local_crops[:, images], views.boxes[:, images], views.samples[images]
    )


def hyperparameters(step: int = 0, **values: Any) -> Hyperparameters:
    defaults = {
        "epoch": 0,
        "lr": 0.1,
        "weight_decay": 0.04,
        "teacher_momentum": 0.9,
        "teacher_temp": 0.07,
        "teacher_patch_temp": 0.07,
        "freeze_last_layer": False,
    }
    return Hyperparameters(step=step, **(defaults | values))


@contextlib.contextmanager
def not_finite(pretrainer: Pretrainer, micro_batch: int) -> Iterator[None]:
    """While active, student and teacher see NaN in one micro-batch of a step, counted from 0."""
    hooks = []
    for branch in (pretrainer.student, pretrainer.teacher):
        count = itertools.count()

        def poison(_: nn.Module, inputs: tuple[Any, ...], count: Iterator[int] = count) -> Any:
            return ([crops * float("nan") for crops in inputs[0]],) if next(count) == micro_batch else inputs

        hooks.append(branch.register_forward_pre_hook(poison))
    yield
    for hook in hooks:
        hook.remove()


def plain_sgd(pretrainer: Pretrainer) -> torch.optim.SGD:
    """For comparing two computations: AdamW would turn rounding of vanishing gradients into whole updates."""
    return torch.optim.SGD(parameter_groups(pretrainer), lr=0.1)


def snapshot(pretrainer: Pretrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pretrainer.state_dict().items()}


def movement_error(begin: dict[str, Tensor], end: dict[str, Tensor], expected_end: dict[str, Tensor]) -> float:
    """How far two trainings from the same weights part, relative to how far they went; the worst tensor counts."""
    worst = 0.0
    for name, expected in expected_end.items():
        way = (expected - begin[name]).double().norm()
        apart = (end[name] - expected).double().norm()
        # The gradient of key biases, and of biases before a batch norm, is rounding alone: these go nowhere.
        floor = 5e-3 * (1 + expected.double().norm())
        worst = max(worst, float(apart / way.clamp(min=floor)))
    return worst
