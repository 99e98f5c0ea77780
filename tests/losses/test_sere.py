"""`SERELoss` in a training loop of one's own; the values of its parts are tested with the method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.core.types import EncoderOutput, Tokens, Views
from selfpatch.losses import SEREChannelLoss, SEREConfig, SERELoss, SERESpatialLoss
from selfpatch.methods.patch.sere import SERE
from tests.helpers.tiny import hyperparameters

G, L, B, D, HEADS = 2, 3, 4, 12, 3


def tokens(views: int, side: int, seed: int) -> Tensor:
    return torch.randn(views, B, side, side, D, generator=torch.manual_seed(seed))


def boxes(views: int) -> Tensor:
    generator = torch.manual_seed(5)
    corner = torch.randint(0, 60, (views, B, 2), generator=generator)
    size = torch.randint(50, 150, (views, B, 2), generator=generator)
    return torch.cat([corner, size, torch.randint(0, 2, (views, B, 1), generator=generator)], -1).float()


def output(heads: torch.nn.ModuleDict, *maps: Tensor) -> EncoderOutput:
    resolutions = tuple(Tokens(None, x.flatten(0, 1), x.flatten(0, 1)) for x in maps)
    return EncoderOutput(torch.zeros(G, B, D), resolutions, dict(heads.items()), None)


@pytest.mark.parametrize("num_local", [0, L])
def test_losses_and_gradients_are_those_of_the_framework(num_local: int) -> None:
    criterion = SERELoss(D, HEADS, has_local=num_local > 0)
    student, teacher = tokens(G, 4, 1).requires_grad_(), tokens(G, 4, 2)
    local = tokens(L, 3, 3).requires_grad_() if num_local else None
    given = [student] if local is None else [student, local]
    losses = criterion(student, teacher, boxes(G + num_local), local_tokens=local)
    crops = None if local is None else torch.zeros(L, B, 3, 3, 3)
    views = Views(torch.zeros(G, B, 3, 4, 4), crops, boxes(G + num_local), torch.arange(B))
    objective = SERE(D, HEADS, num_local, SEREConfig())
    sides = output(criterion.student, *given), output(criterion.teacher, teacher)
    expected = objective(*sides, views, hyperparameters())
    torch.testing.assert_close(losses, expected)
    learned = [*given, *criterion.student.parameters()]
    gradients = torch.autograd.grad(sum(losses.values()), learned)
    torch.testing.assert_close(gradients, torch.autograd.grad(sum(expected.values()), learned))


def test_the_parts_work_by_themselves() -> None:
    student, teacher = tokens(G, 4, 1), tokens(G, 4, 2)
    assert SERESpatialLoss(HEADS)(student, None, teacher, boxes(G)).isfinite()
    assert SEREChannelLoss()(student, None, teacher).isfinite()


def test_an_update_moves_the_teacher_by_the_momentum() -> None:
    criterion = SERELoss(D, HEADS, config=SEREConfig(relations="channel"))
    with torch.no_grad():
        criterion.student["channel_relation"].predictor[0].weight.add_(1.0)
    before = criterion.teacher["channel_relation"].predictor[0].weight.clone()
    criterion.update(momentum=0.75)
    torch.testing.assert_close(criterion.teacher["channel_relation"].predictor[0].weight, before + 0.25)


@pytest.mark.parametrize("has_local", [False, True])
def test_local_crops_come_as_announced(has_local: bool) -> None:
    criterion = SERELoss(D, HEADS, has_local=has_local)
    local = None if has_local else tokens(L, 3, 3)
    with pytest.raises(ValueError, match=f"given, but has_local is {has_local}"):
        criterion(tokens(G, 4, 1), tokens(G, 4, 2), boxes(G), local_tokens=local)
