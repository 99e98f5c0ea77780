"""Schedules, parameter groups and clipping against the golden trajectories, plain loops and torch's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from selfpatch.config.sections import OptimizerConfig
from selfpatch.training.optim import Schedule, clip_gradients, make_optimizer, set_hyperparameters
from tests.helpers.tiny import hyperparameters, tiny_student_teacher
from tests.models.test_param_groups import Parts


def schedule_with(*, epochs: float, steps_per_epoch: int, peak_lr: float = 1.0, **settings: Any) -> Schedule:
    """Return a schedule for a batch of 256 images, of which the base learning rate is the peak."""
    return Schedule(OptimizerConfig(base_lr=peak_lr, **settings), epochs, steps_per_epoch, batch_size=256)


def schedule_of(config: dict) -> Schedule:
    names = ("epochs", "steps_per_epoch", "peak_lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end",
             "teacher_momentum", "teacher_temp", "warmup_teacher_temp", "warmup_teacher_temp_epochs",
             "freeze_last_layer_epochs")  # fmt: skip
    return schedule_with(**{name: config[name] for name in names})


@pytest.mark.parametrize("bundle", ["dino", "selfpatch"])
def test_schedule_of_the_golden_trajectories(golden_dir: Path, bundle: str) -> None:
    record = json.loads((golden_dir / "mini" / bundle / "trajectory.json").read_text())
    schedule = schedule_of(record["config"])
    assert schedule.total_steps >= len(record["steps"]) > 0
    for expected in record["steps"]:
        hp = schedule(expected["step"])
        for name in ("epoch", "lr", "weight_decay", "teacher_momentum", "teacher_temp"):
            assert getattr(hp, name) == pytest.approx(expected[name], rel=1e-9), name


def test_schedule_at_its_corners() -> None:
    schedule = schedule_with(epochs=5, steps_per_epoch=4, peak_lr=2.0, min_lr=0.5, warmup_epochs=1,
                             warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3,
                             freeze_last_layer_epochs=2)  # fmt: skip
    first, warm, peak, last = (schedule(step) for step in (0, 3, 4, 19))
    assert (first.lr, warm.lr, peak.lr) == (0.0, 2.0, 2.0)  # the peak twice, as released
    assert last.lr == pytest.approx(0.5 + 1.5 * (1 + np.cos(np.pi * 15 / 16)) / 2)
    assert (first.weight_decay, first.teacher_momentum) == pytest.approx((0.04, 0.996))
    assert last.teacher_momentum == pytest.approx(1 - 0.004 * (1 + np.cos(np.pi * 19 / 20)) / 2)
    assert [schedule(4 * epoch).teacher_temp for epoch in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert [schedule(step).freeze_last_layer for step in (0, 7, 8, 19)] == [True, True, False, False]
    assert [schedule(step).epoch for step in (0, 3, 4, 19)] == [0, 0, 1, 4]


@given(epochs=st.integers(1, 8), steps=st.integers(1, 9), warmup=st.integers(0, 9), temp_warmup=st.integers(0, 9))
def test_schedule_is_the_published_arrays(epochs: int, steps: int, warmup: int, temp_warmup: int) -> None:
    total, warm = epochs * steps, min(warmup, epochs) * steps
    schedule = schedule_with(epochs=epochs, steps_per_epoch=steps, peak_lr=1.0, min_lr=0.1, warmup_epochs=warmup,
                        warmup_teacher_temp=0.04, teacher_temp=0.07,
                        warmup_teacher_temp_epochs=temp_warmup)  # fmt: skip

    def cosine(start: float, end: float, n: int) -> np.ndarray:
        return end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(n) / max(1, n)))

    lr = np.concatenate(
        [
            np.linspace(0, 1.0, warmup * steps)[:warm] if warmup <= epochs else np.linspace(0, 1.0, warm),
            cosine(1.0, 0.1, total - warm),
        ]
    )
    temps = np.concatenate([np.linspace(0.04, 0.07, temp_warmup), np.full(epochs, 0.07)])
    values = [schedule(step) for step in range(total)]
    np.testing.assert_allclose([hp.lr for hp in values], lr, atol=1e-12)
    np.testing.assert_allclose([hp.weight_decay for hp in values], cosine(0.04, 0.4, total))
    np.testing.assert_allclose([hp.teacher_momentum for hp in values], cosine(0.996, 1.0, total))
    np.testing.assert_allclose([hp.teacher_temp for hp in values], np.repeat(temps[:epochs], steps))


def test_a_warmup_may_start_above_0_and_leave_the_peak_to_the_next_step() -> None:
    schedule = schedule_with(epochs=3, steps_per_epoch=4, peak_lr=2.0, min_lr=0.0, warmup_epochs=1,
                             warmup_start_lr=1.0, warmup_includes_peak=False)  # fmt: skip
    assert [schedule(step).lr for step in range(5)] == [1.0, 1.25, 1.5, 1.75, 2.0]


@given(epochs=st.integers(1, 6), steps=st.integers(1, 9), warmup=st.integers(0, 6))
def test_the_cosine_may_span_the_warmup_and_lag_behind_a_step(epochs: int, steps: int, warmup: int) -> None:
    schedule = schedule_with(epochs=epochs, steps_per_epoch=steps, peak_lr=1.0, min_lr=0.1, warmup_epochs=warmup,
                             warmup_start_lr=0.01, warmup_includes_peak=False, cosine_over="all_steps",
                             lr_delay=1)  # fmt: skip
    total, warm = epochs * steps, min(warmup, epochs) * steps
    expected = [
        0.01 + 0.99 * t / warm if t < warm else 0.1 + 0.45 * (1 + np.cos(np.pi * t / total)) for t in range(total)
    ]
    found = [schedule(step).lr for step in range(total)]
    np.testing.assert_allclose(found, [expected[max(0, t - 1)] for t in range(total)], rtol=1e-12)


def test_rate_and_decay_may_change_once_an_epoch() -> None:
    settings = {"epochs": 4, "steps_per_epoch": 3, "min_lr": 0.0, "warmup_epochs": 0, "weight_decay_end": 0.4}
    each_step, each_epoch = (schedule_with(**settings, update_interval=i) for i in ("step", "epoch"))
    for step in range(12):
        found, first = each_epoch(step), each_step(step // 3 * 3)
        assert (found.lr, found.weight_decay) == (first.lr, first.weight_decay)
        assert found.teacher_momentum == each_step(step).teacher_momentum
    assert each_epoch(3).lr == pytest.approx((1 + np.cos(np.pi / 4)) / 2)  # MoCo-v2: by epoch, of all epochs


def test_temperatures_may_rise_at_every_step() -> None:
    schedule = schedule_with(epochs=4, steps_per_epoch=5, warmup_teacher_temp=0.04, teacher_temp=0.07,
                             warmup_teacher_temp_epochs=2, teacher_temp_interval="step")  # fmt: skip
    expected = np.concatenate([np.linspace(0.04, 0.07, 10), np.full(10, 0.07)])
    np.testing.assert_allclose([schedule(step).teacher_temp for step in range(20)], expected)


def test_parts_of_an_epoch_count() -> None:
    assert schedule_with(epochs=0.5, steps_per_epoch=7, peak_lr=1.0).total_steps == 4
    assert schedule_with(epochs=0.01, steps_per_epoch=7, peak_lr=1.0).total_steps == 1


def test_patch_temperature_follows_the_images_unless_it_has_its_own() -> None:
    shared = schedule_with(epochs=2, steps_per_epoch=1, peak_lr=1.0, teacher_temp=0.07, warmup_teacher_temp=0.05)
    own = schedule_with(epochs=2, steps_per_epoch=1, peak_lr=1.0, teacher_temp=0.07, teacher_patch_temp=0.03)
    assert shared(0).teacher_patch_temp == 0.07
    assert own(0).teacher_patch_temp == 0.03


def test_layers_may_learn_at_rates_of_their_own() -> None:
    parts = Parts()
    optimizer = make_optimizer(parts, OptimizerConfig(), dict.fromkeys(parts.linear.parameters(), 0.5))
    set_hyperparameters(optimizer, hyperparameters(lr=0.2, weight_decay=0.3))
    found = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}
    assert found == {(0.2, 0.3): 2, (0.2, 0.0): 3, (0.1, 0.3): 1, (0.1, 0.0): 1}


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_other_optimizers_take_a_step(name: str) -> None:
    parts = Parts()
    optimizer = make_optimizer(parts, OptimizerConfig(name=name))
    set_hyperparameters(optimizer, hyperparameters(lr=0.1, weight_decay=0.0))
    before = parts.linear.weight.detach().clone()
    parts.linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(parts.linear.weight, before)


def test_a_teacher_that_moves_before_the_step_has_the_next_momentum() -> None:
    after, before = (
        schedule_with(epochs=2, steps_per_epoch=5, teacher_momentum=0.9, teacher_moves=m)
        for m in ("after_step", "before_step")
    )
    assert [before(t).teacher_momentum for t in range(9)] == [after(t + 1).teacher_momentum for t in range(9)]
    constant = schedule_with(epochs=2, steps_per_epoch=5, teacher_momentum=0.9, teacher_momentum_end=0.9)
    assert {constant(t).teacher_momentum for t in range(10)} == {0.9}


def test_hyperparameters_reach_the_groups() -> None:
    optimizer = make_optimizer(Parts(), OptimizerConfig())
    set_hyperparameters(optimizer, hyperparameters(lr=0.3, weight_decay=0.2))
    decayed, kept = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"]) == (0.3, 0.2)
    assert (kept["lr"], kept["weight_decay"]) == (0.3, 0.0)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_the_whole_network_is_optimised_but_for_the_teacher() -> None:
    student_teacher = tiny_student_teacher()
    optimised = {
        id(p) for group in make_optimizer(student_teacher, OptimizerConfig()).param_groups for p in group["params"]
    }
    assert optimised == {id(p) for p in student_teacher.student.parameters() if p.requires_grad}


def parameters_with_gradients() -> list[nn.Parameter]:
    generator = torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2), (1,), (2,))]
    for parameter, size in zip(parameters, [0.1, 1.0, 10.0, 0.0], strict=False):  # the last has none
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
    return parameters


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 100.0])
def test_clipping_each_tensor_equals_a_plain_loop(max_norm: float) -> None:
    clipped, plain = parameters_with_gradients(), parameters_with_gradients()
    clip_gradients(clipped, max_norm, "tensor")
    for got, p in zip(clipped, plain, strict=True):
        if p.grad is None:
            assert got.grad is None
            continue
        scale = max_norm / (float(p.grad.norm()) + 1e-6)
        torch.testing.assert_close(got.grad, p.grad * scale if scale < 1 else p.grad)


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 100.0])
def test_clipping_all_together_is_torchs(max_norm: float) -> None:
    clipped, plain = parameters_with_gradients(), parameters_with_gradients()
    norm = clip_gradients(clipped, max_norm, "global")
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(plain, max_norm))
    torch.testing.assert_close([p.grad for p in clipped[:-1]], [p.grad for p in plain[:-1]])


@pytest.mark.parametrize("mode", ["tensor", "global"])
def test_zero_clips_nothing_but_still_measures(mode: str) -> None:
    parameters, plain = parameters_with_gradients(), parameters_with_gradients()
    norm = clip_gradients(parameters, 0.0, mode)
    torch.testing.assert_close(norm, torch.cat([p.grad.flatten() for p in plain[:-1]]).norm())
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(parameters[:-1], plain[:-1], strict=True))


def test_lars_is_larc_around_sgd_as_swav_was_trained() -> None:
    """Compare with apex's LARC of trust coefficient 0.001 without clipping; a tensor of norm 0 takes SGD's step."""
    parts, plain = Parts(), Parts()
    plain.load_state_dict(parts.state_dict())
    optimizer = make_optimizer(parts, OptimizerConfig(name="lars", momentum=0.9, weight_decay_on="all"))
    reference = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.3, momentum=0.9)
    set_hyperparameters(optimizer, hyperparameters(lr=0.3, weight_decay=0.1))
    generator = torch.manual_seed(0)
    for _ in range(3):
        for p, q in zip(parts.parameters(), plain.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
            q.grad = None if p.grad is None else p.grad.clone()
            norm = float(q.detach().norm())
            if q.grad is not None and norm > 0:
                q.grad = (q.grad + 0.1 * q.detach()) * 0.001 * norm / (float(q.grad.norm()) + 0.1 * norm + 1e-8)
        optimizer.step()
        reference.step()
    assert float(parts.norm.bias.detach().norm()) > 0
    for p, q in zip(parts.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)
