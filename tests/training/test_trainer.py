"""One step of the algorithm: what it changes, what it must not, and that micro-batches do not change the result."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.api.pretrain import pretrain
from selfpatch.config.sections import OptimizerConfig
from selfpatch.core.types import Views
from selfpatch.training.loggers.metrics import read_metrics
from selfpatch.training.optim import make_optimizer
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import StepOutcome, training_step
from tests.helpers.command_line import write_photos
from tests.helpers.tiny import (
    COMPONENTS,
    hyperparameters,
    movement_error,
    not_finite,
    part_of,
    plain_sgd,
    snapshot,
    tiny_config,
    tiny_student_teacher,
    tiny_views,
)

NO_CLIPPING = OptimizerConfig(clip=0.0, clip_mode="tensor")
CHOICES = [{"objective": "none"}, {"objective": "selfpatch"}, {"selfpatch": {"border": "clip", "aggregation": "mean"}}]


def split(views: Views, parts: int) -> list[Views]:
    size = views.batch_size // parts
    return [part_of(views, slice(i * size, (i + 1) * size)) for i in range(parts)]


def two_steps(
    parts: int, clipping: OptimizerConfig, settings: dict[str, Any]
) -> tuple[StudentTeacher, list[StepOutcome]]:
    student_teacher = tiny_student_teacher(**settings)
    optimizer = plain_sgd(student_teacher)
    outcomes = [
        training_step(
            student_teacher, split(tiny_views(4, seed=step), parts), optimizer, hyperparameters(step), clipping
        )
        for step in range(2)
    ]
    return student_teacher, outcomes


@pytest.mark.parametrize("settings", CHOICES, ids=["dino", "dino+selfpatch", "dino+selfpatch-clip-mean"])
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    "clipping",
    [NO_CLIPPING, OptimizerConfig(clip=0.05, clip_mode="tensor"), OptimizerConfig(clip=0.2, clip_mode="global")],
    ids=lambda c: f"{c.clip_mode}-{c.clip}",
)
def test_micro_batches_give_the_result_of_the_whole_batch(
    parts: int, clipping: OptimizerConfig, settings: dict[str, Any]
) -> None:
    begin = snapshot(tiny_student_teacher(**settings))
    whole, expected = two_steps(1, clipping, settings)
    accumulated, outcomes = two_steps(parts, clipping, settings)
    for outcome, plain in zip(outcomes, expected, strict=True):
        assert outcome.finite
        assert outcome.values.keys() == plain.values.keys()
        for name, value in plain.values.items():
            torch.testing.assert_close(
                outcome.values[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert movement_error(begin, snapshot(accumulated), snapshot(whole)) < 1e-3  # measured: below 1e-4
    for name, state in snapshot(whole).items():
        if name.endswith("center"):
            assert state.any()
            torch.testing.assert_close(snapshot(accumulated)[name], state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("settings", CHOICES[:2], ids=["dino", "dino+selfpatch"])
def test_a_step_that_is_not_finite_changes_nothing(bad: int, settings: dict[str, Any]) -> None:
    student_teacher = tiny_student_teacher(**settings)
    optimizer = make_optimizer(student_teacher, OptimizerConfig())
    hp = hyperparameters(lr=1e-3)
    assert training_step(student_teacher, split(tiny_views(4), 2), optimizer, hp, NO_CLIPPING).finite
    begin, adam = snapshot(student_teacher), {k: v.clone() for k, v in adam_state(optimizer).items()}
    with not_finite(student_teacher, micro_batch=bad):
        outcome = training_step(
            student_teacher,
            split(tiny_views(4, seed=1), 2),
            optimizer,
            hp,
            OptimizerConfig(clip=3.0, clip_mode="tensor"),
        )
    assert not outcome.finite
    assert not outcome.values["loss"].isfinite()
    assert all(torch.equal(begin[name], tensor) for name, tensor in snapshot(student_teacher).items())
    assert adam.keys() == adam_state(optimizer).keys()
    assert all(torch.equal(adam[name], tensor) for name, tensor in adam_state(optimizer).items())
    # The centres' notes of the failed step are forgotten too: the next step is as if it had never been.
    twin = tiny_student_teacher(**settings)
    twin.load_state_dict(begin)
    for model, chosen in ((student_teacher, optimizer), (twin, clone_of(optimizer, twin))):
        assert training_step(model, [tiny_views(4, seed=2)], chosen, hp, NO_CLIPPING).finite
    assert all(torch.equal(snapshot(twin)[name], tensor) for name, tensor in snapshot(student_teacher).items())


def adam_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {f"{i}.{k}": v for i, state in optimizer.state_dict()["state"].items() for k, v in state.items()}


def clone_of(optimizer: torch.optim.Optimizer, student_teacher: StudentTeacher) -> torch.optim.Optimizer:
    clone = make_optimizer(student_teacher, OptimizerConfig())
    clone.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading alone would share the tensors
    return clone


def test_a_gradient_that_is_not_finite_stops_the_step_too() -> None:
    student_teacher = tiny_student_teacher()
    student_teacher.student.backbone.trunk.pos_embed.register_hook(lambda gradient: gradient * float("inf"))
    begin = snapshot(student_teacher)
    outcome = training_step(
        student_teacher, [tiny_views(2)], plain_sgd(student_teacher), hyperparameters(), NO_CLIPPING
    )
    assert outcome.values["loss"].isfinite()
    assert not outcome.finite
    assert all(torch.equal(begin[name], tensor) for name, tensor in snapshot(student_teacher).items())


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    student_teacher = tiny_student_teacher()
    optimizer = plain_sgd(student_teacher)
    for step, momentum in enumerate([0.9, 0.5, 1.0]):
        before = {name: p.clone() for name, p in student_teacher.teacher.named_parameters()}
        hp = hyperparameters(step, teacher_momentum=momentum)
        training_step(student_teacher, [tiny_views(2, seed=step)], optimizer, hp, NO_CLIPPING)
        student = dict(student_teacher.student.named_parameters())
        for name, teacher in student_teacher.teacher.named_parameters():
            torch.testing.assert_close(teacher, momentum * before[name] + (1 - momentum) * student[name])
    assert any(
        not torch.equal(t, s)
        for t, s in zip(student_teacher.teacher.parameters(), student_teacher.student.parameters(), strict=True)
    )


@pytest.mark.parametrize("settings", CHOICES, ids=["dino", "dino+selfpatch", "dino+selfpatch-clip-mean"])
def test_every_trainable_parameter_has_a_gradient_and_the_teacher_none(settings: dict[str, Any]) -> None:
    student_teacher = tiny_student_teacher(**settings)
    student_teacher(tiny_views(3), hyperparameters())["loss"].backward()
    for name, parameter in student_teacher.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient; DDP would wait for it for ever"
            assert parameter.grad.any() or name.endswith("attn.k.bias"), f"the gradient of {name} is zero"
    assert not any(p.requires_grad for p in student_teacher.teacher.parameters())
    assert {p.requires_grad for p in student_teacher.student.parameters()} == {
        True,
        False,
    }  # the gains of the prototypes are fixed


def test_the_total_is_the_weighted_sum() -> None:
    student_teacher = tiny_student_teacher(loss_weights={"patch": 0.3})
    out = student_teacher(tiny_views(2), hyperparameters())
    assert out.keys() == {"loss", "image", "patch"}
    torch.testing.assert_close(out["loss"], out["image"] + 0.3 * out["patch"])
    assert tiny_student_teacher().loss_weights == {"image": 1.0, "patch": 0.1}


def test_the_patch_loss_weighs_each_view_the_same() -> None:
    """A global crop has 16 patches here and a local one 9; swapping the counts would change the mean."""
    student_teacher, views, hp = tiny_student_teacher(), tiny_views(2), hyperparameters()
    objective = student_teacher.objectives["selfpatch"]
    assert views.local_crops is not None
    per_view = []
    for crops in (*views.global_crops, *views.local_crops):
        alone = Views(crops[None], None, torch.zeros(1, 2, 5), views.samples)
        inputs = [*student_teacher._needed_crops(alone).values()]
        per_view.append(objective(student_teacher.student(inputs), student_teacher.teacher(inputs), alone, hp)["patch"])
    expected = torch.stack(per_view).mean()
    torch.testing.assert_close(student_teacher(views, hp)["patch"], expected, rtol=1e-5, atol=1e-6)


def test_the_teacher_sees_local_crops_only_if_something_needs_them() -> None:
    seen: list[int] = []
    for objective in ("none", "selfpatch"):
        student_teacher = tiny_student_teacher(objective=objective)
        student_teacher.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        student_teacher(tiny_views(2), hyperparameters())
    assert seen == [1, 2]


def test_a_frozen_last_layer_keeps_its_weights_and_no_adam_state() -> None:
    student_teacher = tiny_student_teacher()
    optimizer = make_optimizer(student_teacher, OptimizerConfig())
    hp = hyperparameters(lr=1e-2, weight_decay=0.4, freeze_last_layer=True)
    last = {n: p for n, p in student_teacher.student.named_parameters() if n.endswith("last_layer.weight_v")}
    assert sorted(last) == ["heads.image.last_layer.weight_v", "heads.patch.last_layer.weight_v"]
    before = {name: p.clone() for name, p in last.items()}
    training_step(student_teacher, [tiny_views(2)], optimizer, hp, NO_CLIPPING)
    for name, parameter in last.items():
        assert torch.equal(parameter, before[name])
        assert parameter not in optimizer.state
    training_step(student_teacher, [tiny_views(2)], optimizer, replace(hp, freeze_last_layer=False), NO_CLIPPING)
    for name, parameter in last.items():
        assert not torch.equal(parameter, before[name])
        assert float(optimizer.state[parameter]["step"]) == 1


def test_meters_come_only_when_asked_for_and_change_nothing() -> None:
    watched, plain = tiny_student_teacher(), tiny_student_teacher()
    with_meters = training_step(
        watched, [tiny_views(2)], plain_sgd(watched), hyperparameters(), NO_CLIPPING, with_meters=True
    )
    without = training_step(plain, [tiny_views(2)], plain_sgd(plain), hyperparameters(), NO_CLIPPING)
    meters = with_meters.values.keys() - without.values.keys()
    assert meters >= {"effective_rank", "patch_rank", "patch_outliers", "entropy", "mean_entropy", "max_entropy"}
    assert all(torch.equal(snapshot(plain)[name], tensor) for name, tensor in snapshot(watched).items())


def test_autocast_trains_in_bfloat16_with_float32_weights() -> None:
    student_teacher = tiny_student_teacher()
    outcome = training_step(
        student_teacher,
        [tiny_views(4)],
        plain_sgd(student_teacher),
        hyperparameters(),
        NO_CLIPPING,
        autocast=torch.bfloat16,
    )
    exact = tiny_student_teacher()(tiny_views(4), hyperparameters())
    assert outcome.finite
    assert {p.dtype for p in student_teacher.parameters()} == {torch.float32}
    assert {value.dtype for value in outcome.values.values()} == {torch.float32}
    for name in ("image", "patch"):
        torch.testing.assert_close(outcome.values[name], exact[name].detach(), rtol=0.05, atol=0.05)
        assert not torch.equal(outcome.values[name], exact[name])


def test_a_wish_to_stop_comes_back() -> None:
    student_teacher = tiny_student_teacher()
    for wish in (False, True):
        outcome = training_step(
            student_teacher,
            [tiny_views(2)],
            plain_sgd(student_teacher),
            hyperparameters(),
            NO_CLIPPING,
            stop_requested=wish,
        )
        assert outcome.stop is wish
        assert outcome.finite


def test_drop_path_follows_the_seed_of_the_step() -> None:
    views = tiny_views(4)

    def loss(seed: int) -> float:
        student_teacher = tiny_student_teacher(backbone={"drop_path": 0.5})
        torch.manual_seed(seed)
        return float(student_teacher(views, hyperparameters())["loss"].detach())

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_the_teacher_is_a_whole_branch_in_training_mode() -> None:
    student_teacher = tiny_student_teacher(dino={"head_norm": True})
    assert student_teacher.teacher.state_dict().keys() == student_teacher.student.state_dict().keys()
    assert all(module.training for module in student_teacher.teacher.modules())


def test_a_run_says_that_predictions_stay_uniform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A large temperature of the student makes its predictions uniform, whatever it learns."""
    photos = write_photos(tmp_path / "photos", 10)
    uniform = COMPONENTS["dino"] | {"student_temp": 1000}
    config = tiny_config(data=str(photos), out=str(tmp_path / "run"), epochs=3, device="cpu", dino=uniform)
    run = pretrain(config.override({"watch": {"log_every": 1}, "loader": {"held_out": 2, "workers": 0}}))
    said = capsys.readouterr().out
    assert said.count("Predictions are still uniform after") == 1
    assert "Predictions are still uniform after 4 steps, so that the loss teaches nothing: image 3.18 of 3.18" in said
    rows = [row for row in read_metrics(run) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["uniform_image"] == pytest.approx(math.log(24)) for row in rows)
    assert all(row["uniform_patch"] == pytest.approx(math.log(12)) for row in rows)
    assert "no better than uniform predictions at the end: image 3.18" in (run / "report.html").read_text("utf-8")


def test_a_teacher_that_encodes_nothing_has_batch_norms_of_its_student() -> None:
    student_teacher = tiny_student_teacher(method="none", objective="distill", model="resnet50")
    optimizer, hp = plain_sgd(student_teacher), hyperparameters(teacher_momentum=0.5)
    for step in range(2):
        before = student_teacher.teacher.state_dict()["backbone.trunk.bn1.running_var"].clone()
        training_step(student_teacher, [tiny_views(4, seed=step, scale=2)], optimizer, hp, NO_CLIPPING)
        student, teacher = (
            branch.state_dict()["backbone.trunk.bn1.running_var"]
            for branch in (student_teacher.student, student_teacher.teacher)
        )
        torch.testing.assert_close(teacher, (before + student) / 2)
    training_step(
        student_teacher, [tiny_views(4, scale=2)], optimizer, hyperparameters(teacher_momentum=0.0), NO_CLIPPING
    )
    crops = [torch.randn(1, 2, 3, 32, 32)]
    with torch.no_grad():
        images = [branch.eval()(crops).image for branch in (student_teacher.student, student_teacher.teacher)]
    torch.testing.assert_close(images[1], images[0])


def test_a_teacher_that_encodes_nothing_keeps_its_batch_norms_in_a_step_that_is_not_finite() -> None:
    student_teacher = tiny_student_teacher(method="none", objective="koleo", model="resnet50")
    optimizer = make_optimizer(student_teacher, OptimizerConfig())
    training_step(student_teacher, [tiny_views(4, scale=2)], optimizer, hyperparameters(), NO_CLIPPING)
    begin = snapshot(student_teacher)
    for deferred in (False, True):
        with not_finite(student_teacher, micro_batch=0):
            training_step(
                student_teacher, [tiny_views(4, scale=2)], optimizer, hyperparameters(), NO_CLIPPING, deferred=deferred
            )
        assert all(torch.equal(begin[name], tensor) for name, tensor in snapshot(student_teacher).items())
