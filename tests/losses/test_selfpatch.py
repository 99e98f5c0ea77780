"""`SelfPatchLoss` in a training loop of one's own, against the framework's step."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfpatch.config.sections import OptimizerConfig
from selfpatch.core.types import Views
from selfpatch.losses import SelfPatchConfig, SelfPatchLoss
from selfpatch.losses.owned_heads import LossWithHeads
from selfpatch.losses.selfpatch import make_pool, patch_targets
from selfpatch.ops.images import normalise
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step
from tests.helpers.tiny import COMPONENTS, hyperparameters, plain_sgd, tiny_student_teacher, tiny_views

SMALL = SelfPatchConfig(num_prototypes=7, hidden_dim=8, bottleneck_dim=4)


def framework(num_local: int, **settings: Any) -> StudentTeacher:
    """The framework's network, which learns from the patch loss alone."""
    selfpatch = COMPONENTS["selfpatch"] | settings
    crops = {"num_local": num_local}
    return tiny_student_teacher(crops=crops, loss_weights={"image": 0.0, "patch": 1.0}, selfpatch=selfpatch)


def criterion_of(student_teacher: StudentTeacher, **settings: Any) -> SelfPatchLoss:
    """The loss with the framework's weights copied in."""
    config = SelfPatchConfig(**COMPONENTS["selfpatch"] | settings)
    criterion = SelfPatchLoss(dim=16, num_heads=2, config=config)
    for side, branch in ((criterion.student, student_teacher.student), (criterion.teacher, student_teacher.teacher)):
        side["pool"].load_state_dict(branch.pool.state_dict())
        side["head"].load_state_dict(branch.heads["patch"].state_dict())
    agreement = student_teacher.objectives["selfpatch"].agreement
    criterion.agreement.load_state_dict(agreement.state_dict())
    return criterion


def views_of(step: int, num_local: int) -> Views:
    views = tiny_views(4, seed=step)
    return views if num_local else replace(views, local_crops=None, boxes=views.boxes[:2])


def pairs_of_gradients(criterion: SelfPatchLoss, student_teacher: StudentTeacher) -> list[tuple[Tensor, Tensor]]:
    student, objective = student_teacher.student, student_teacher.objectives["selfpatch"]
    modules = [
        (criterion.student["pool"], student.pool),
        (criterion.student["head"], student.heads["patch"]),
        (criterion.agreement, objective.agreement),
    ]
    return [
        (p.grad, q.grad)
        for ours, theirs in modules
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
        if q.grad is not None and p.grad is not None
    ]


def test_a_loop_around_a_timm_vit_takes_the_steps_of_the_framework() -> None:
    reference = framework(num_local=0)
    reference_optimizer = plain_sgd(reference)
    student, teacher = (copy.deepcopy(side.backbone.trunk) for side in (reference.student, reference.teacher))
    criterion = criterion_of(reference)
    optimizer = torch.optim.SGD([*student.parameters(), *criterion.parameters()], lr=0.1)
    for step in range(3):
        views, hp = views_of(step, num_local=0), hyperparameters(step, weight_decay=0.0)
        no_clipping = OptimizerConfig(clip=0.0)
        expected = training_step(reference, [views], reference_optimizer, hp, no_clipping).values["patch"]
        images = normalise(views.global_crops.flatten(0, 1), *statistics(reference))

        loss = criterion(student(images), teacher(images), grid=(4, 4), teacher_temp=hp.teacher_temp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(new, 1 - hp.teacher_momentum)
        criterion.update(momentum=hp.teacher_momentum)

        torch.testing.assert_close(loss.detach(), expected)
        for p, q in zip(student.parameters(), reference.student.backbone.trunk.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        gradients = pairs_of_gradients(criterion, reference)
        assert len(gradients) == 9, "norm of the pool, 3 layers of the head, prototypes"
        for got, wanted in gradients:
            torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(criterion.teacher["pool"].state_dict(), reference.teacher.pool.state_dict())
    center = reference.objectives["selfpatch"].agreement.state_dict()
    torch.testing.assert_close(criterion.agreement.state_dict(), center)
    torch.testing.assert_close(teacher.state_dict(), reference.teacher.backbone.trunk.state_dict())


def statistics(student_teacher: StudentTeacher) -> tuple[tuple[float, ...], tuple[float, ...]]:
    backbone = student_teacher.student.backbone
    return backbone.mean, backbone.std


@pytest.mark.parametrize("agreement", ["prototypes", "cosine", "contrast"])
def test_crops_of_two_resolutions_and_every_agreement_give_the_loss_of_the_framework(agreement: str) -> None:
    unread = {} if agreement == "prototypes" else {"num_prototypes": 4096}
    settings = {"agreement": agreement, **unread}
    reference = framework(2, **settings)
    criterion = criterion_of(reference, **settings)
    views = views_of(0, num_local=2)
    hp = hyperparameters()
    expected = reference(views, hp)["loss"]  # the patch loss alone has weight
    crops = [
        normalise(group.flatten(0, 1), *statistics(reference)) for group in (views.global_crops, views.local_crops)
    ]
    sides = [
        [side.backbone(group).raw_patches.flatten(1, 2) for group in crops]
        for side in (reference.student, reference.teacher)
    ]
    loss = criterion(*sides, [(4, 4), (3, 3)], hp.teacher_temp, samples=views.samples)
    torch.testing.assert_close(loss, expected)
    learned = list(reference.student.backbone.trunk.parameters())
    expected_gradients = torch.autograd.grad(expected, learned)
    for got, wanted in zip(torch.autograd.grad(loss, learned), expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def patches(seed: int) -> Tensor:
    return torch.randn(3, 16, 6, generator=torch.manual_seed(seed))


def test_only_the_students_side_takes_gradients() -> None:
    criterion = SelfPatchLoss(6, 2, SMALL)
    student, teacher = patches(1).requires_grad_(), patches(2).requires_grad_()
    criterion(student, teacher, grid=(4, 4)).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None
    assert all(parameter.grad is None for parameter in criterion.teacher.parameters())
    assert any(parameter.grad is not None for parameter in criterion.student.parameters())


def test_an_update_moves_the_teacher_by_the_momentum_and_the_centre_once() -> None:
    criterion = SelfPatchLoss(6, 2, SMALL)
    with torch.no_grad():
        criterion.student["pool"].query.add_(1.0)
    before = criterion.teacher["pool"].query.clone()
    criterion(patches(1), patches(2), grid=(4, 4))
    assert not criterion.agreement.loss.center.center.any(), "not before the step is over"
    criterion.update(momentum=0.75)
    expected = torch.lerp(before, criterion.student["pool"].query, 0.25)
    torch.testing.assert_close(criterion.teacher["pool"].query, expected.detach())
    assert criterion.agreement.loss.center.center.any()
    assert criterion.num_updates == 1


def test_the_state_of_a_loss_is_saved_whole() -> None:
    first, again = SelfPatchLoss(6, 2, SMALL), SelfPatchLoss(6, 2, SMALL)
    first(patches(1), patches(2), grid=(4, 4))
    first.update(momentum=0.9)
    again.load_state_dict(first.state_dict())
    losses = [criterion(patches(3), patches(4), grid=(4, 4)) for criterion in (first, again)]
    assert torch.equal(*losses)


def test_the_mean_is_the_ablation_of_the_pool() -> None:
    config, teacher = SelfPatchConfig(aggregation="mean", k=8), patches(0)
    targets = patch_targets(teacher, (4, 4), make_pool(6, 2, config), config)
    maps = teacher.unflatten(1, (4, 4))
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    mean = torch.stack([maps.roll(shift, (1, 2)) for shift in shifts]).mean(0).flatten(1, 2)
    torch.testing.assert_close(targets, nn.LayerNorm(6, eps=1e-6)(mean))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is 0; use a number above 0"),
        ({"k": 9}, "k is 9, but a 3x3 window has 8 neighbours; lower k or widen the window"),
        ({"window": 4}, "window is 4; use an odd number from 3 on, or 'all'"),
        ({"border": "mirror"}, "border is 'mirror'; use one of: wrap, clip"),
        ({"aggregation": "max"}, "aggregation is 'max'; use one of: attention, mean"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfPatchConfig(**settings)


def test_heads_of_a_loss_start_alike() -> None:
    criterion: LossWithHeads = SelfPatchLoss(6, 2, SMALL)
    for p, q in zip(criterion.student.parameters(), criterion.teacher.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not q.requires_grad
