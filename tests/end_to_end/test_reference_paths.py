"""All fast paths against all references at once: whole steps, their gradients, and what training comes to."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.core.reference import fast_path_of, use_references, using_references
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.training.factory import make_optimizer, make_schedule
from selfpatch.training.optim import clip_gradients
from selfpatch.training.packing import pack_crops
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step
from tests.helpers.curves import METHODS, OBJECTIVES
from tests.helpers.devices import DEVICES
from tests.helpers.tiny import hyperparameters, tiny_config, tiny_student_teacher, tiny_views

MODELS = ("vit_tiny", pytest.param("swin_tiny", marks=pytest.mark.slow))


def test_a_function_stands_beside_its_reference() -> None:
    def slow(x: int, *, y: int = 0) -> str:
        return f"slow {x} {y}"

    @fast_path_of(slow)
    def fast(x: int, *, y: int = 0) -> str:
        return f"fast {x} {y}"

    assert fast(1, y=2) == "fast 1 2"
    with use_references():
        assert fast(1, y=2) == "slow 1 2"
        with use_references():
            pass
        assert using_references()
    assert fast(1) == "fast 1 0"


def test_an_error_ends_the_plain_paths() -> None:
    with pytest.raises(KeyError), use_references():
        raise KeyError
    assert not using_references()


def losses_and_gradients(
    plain: bool, autocast: torch.dtype | None = None, device: str = "cpu", **settings: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each loss of one step, with drop path and masks, and all gradients as one vector."""
    student_teacher = tiny_student_teacher(**settings).to(device)
    packable = student_teacher.student.backbone.packable
    pack_crops(student_teacher, "always" if packable else "never", torch.device(device), autocast)
    scale = 1 if settings["model"] == "vit_tiny" else 2
    torch.manual_seed(11)
    with use_references() if plain else contextlib.nullcontext():
        with torch.autocast(device, autocast, enabled=autocast is not None):
            losses = student_teacher(tiny_views(16, scale=scale).to(device), hyperparameters())
        losses["loss"].backward()
    gradients = [p.grad.flatten() for p in student_teacher.parameters() if p.grad is not None]
    return {name: loss.detach().cpu() for name, loss in losses.items()}, torch.cat(gradients).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_has_the_gradients_of_the_plain_step(method: str, objective: str, model: str, device: str) -> None:
    settings = {"method": method, "objective": objective, "model": model, "backbone": {"drop_path": 0.2}}
    (losses, gradients), (expected, expected_gradients) = (
        losses_and_gradients(plain, device=device, **settings) for plain in (False, True)
    )
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert (gradients - expected_gradients).norm() <= 1e-5 * expected_gradients.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_in_bfloat16_a_step_is_as_near_to_float32_as_the_plain_one(method: str, device: str) -> None:
    settings = {"method": method, "objective": "selfpatch", "model": "vit_tiny", "device": device}
    _, exact = losses_and_gradients(True, **settings)
    errors = [
        (losses_and_gradients(plain, torch.bfloat16, **settings)[1] - exact).norm() / exact.norm()
        for plain in (False, True)
    ]
    assert errors[0] <= 1.2 * errors[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_scale": True},
        {"mlp": "swiglu"},
        {"class_token": False, "num_registers": 2},
        {"rope": True, "num_registers": 2},
    ],
    ids=str,
)
def test_a_block_that_keeps_less_is_the_same_block(changes: dict[str, Any]) -> None:
    shape = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=4, grid=4, **changes)
    results = []
    for plain in (False, True):
        torch.manual_seed(2)
        backbone = build_backbone(shape, drop_path=0.3).train()
        images = torch.randn(5, 3, 20, 12)
        with use_references() if plain else contextlib.nullcontext():
            backbone(images).raw_patches.square().sum().backward()
        results.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["tensor", "global"])
@pytest.mark.parametrize("largest", [0.0, 0.5, 100.0])
def test_clipping_is_its_reference(mode: Any, largest: float) -> None:
    results = []
    for plain in (False, True):
        generator = torch.manual_seed(4)
        parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 1, 7)]
        for p in parameters[:2]:
            p.grad = torch.randn(p.shape, generator=generator)
        with use_references() if plain else contextlib.nullcontext():
            norm = clip_gradients(parameters, largest, mode)
        results.append([norm, *(p.grad for p in parameters[:2])])
    torch.testing.assert_close(*results)


def train(steps: int, *, plain: bool, nudge: float = 0.0) -> Tensor:
    """The loss of each step of a tiny DINO + SelfPatch, with AdamW, schedules and drop path."""
    settings = {"model": "vit_tiny", "backbone": {"drop_path": 0.1}, "epochs": steps, "batch_size": 8}
    settings |= {"optimizer": {"base_lr": 0.03, "warmup_epochs": 10, "freeze_last_layer_epochs": 5}}
    config, student_teacher = tiny_config(**settings), tiny_student_teacher(**settings)
    _nudge(student_teacher, nudge)
    schedule, losses = make_schedule(config, steps_per_epoch=1), []
    with use_references() if plain else contextlib.nullcontext():
        optimizer = make_optimizer(config, student_teacher)
        for step in range(steps):
            torch.manual_seed(step)
            outcome = training_step(
                student_teacher, [tiny_views(8, seed=step)], optimizer, schedule(step), config.optimizer
            )
            losses.append(outcome.values["loss"])
    return torch.stack(losses)


@torch.no_grad()
def _nudge(student_teacher: StudentTeacher, size: float) -> None:
    generator = torch.manual_seed(1)
    for parameter in student_teacher.student.parameters():
        parameter.mul_(1 + size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.slow
def test_training_comes_to_the_same_with_all_paths_plain() -> None:
    """200 steps: the curves differ by no more than rounding makes two plain runs differ."""
    plain, fast, rounded = train(200, plain=True), train(200, plain=False), train(200, plain=True, nudge=6e-8)
    noise = (rounded - plain).abs().max()
    assert (plain[-20:].mean() - plain[:20].mean()).abs() > 0.5  # not a curve that nothing could change
    assert (fast - plain).abs().max() <= 10 * noise
