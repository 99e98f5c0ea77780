"""A step that the device takes or discards by itself: the result of one that is waited for, without the wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.config.sections import CheckpointConfig, OptimizerConfig, WatchConfig
from selfpatch.core.reference import use_references
from selfpatch.core.types import Hyperparameters, Views
from selfpatch.methods.registry import METHODS
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.models.layers.ema import ema_update
from selfpatch.training import trainer as trainer
from selfpatch.training.checkpointing import NonFiniteError
from selfpatch.training.factory import make_schedule
from selfpatch.training.optim import can_step_if_finite, make_optimizer
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import StepOutcome, train, training_step
from tests.helpers.devices import DEVICES, NEEDS_CUDA
from tests.helpers.tiny import hyperparameters, not_finite, part_of, tiny_config, tiny_student_teacher, tiny_views

Settings = dict[str, Any]
CHOICES: list[Settings] = [
    *({"method": method, "objective": "none"} for method in METHODS),
    {"method": "dino", "objective": "selfpatch"},
    {"method": "dino", "objective": "none", "model": "resnet50"},
    {"method": "moby", "objective": "none", "model": "swin_tiny"},
]
ids = [f"{c['method']}-{c.get('model', c['objective'])}" for c in CHOICES]
HOST = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")


class NothingIsRead(TorchDispatchMode):
    """Raises where a tensor's value, or a shape that depends on one, is needed on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in HOST, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Training:
    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self.student_teacher, self.device = tiny_student_teacher(**settings).to(device), device
        self.optimizer = make_optimizer(self.student_teacher, OptimizerConfig())
        self.scale = 1 if settings.get("model", "vit_tiny") == "vit_tiny" else 2

    def step(self, seed: int, *, deferred: bool | None, parts: int = 1, bad: int | None = None) -> StepOutcome:
        """`bad`: the micro-batch that is not finite."""
        views = tiny_views(4, seed=seed, scale=self.scale).to(self.device)
        size = 4 // parts
        batches = [part_of(views, slice(i * size, (i + 1) * size)) for i in range(parts)]
        hp = hyperparameters(seed, lr=1e-3)
        clipping = OptimizerConfig(clip=0.3, clip_mode="tensor")
        with contextlib.nullcontext() if bad is None else not_finite(self.student_teacher, micro_batch=bad):
            return training_step(self.student_teacher, batches, self.optimizer, hp, clipping, deferred=deferred)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of student_teacher and optimizer, copied."""
        adam = self.optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": tensor for i, state in adam.items() for name, tensor in state.items()}
        return {name: tensor.clone() for name, tensor in (tensors | self.student_teacher.state_dict()).items()}


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    differing = [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)]
    assert not differing


@pytest.mark.parametrize("settings", CHOICES, ids=ids)
def test_the_result_is_that_of_a_step_that_is_waited_for(settings: Settings) -> None:
    usual, deferred = Training(settings), Training(settings)
    for step in range(3):
        assert usual.step(step, deferred=False, parts=2).finite
        assert deferred.step(step, deferred=True, parts=2).finite
        assert_equal(deferred.state(), usual.state())


@pytest.mark.parametrize("bad", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("settings", CHOICES, ids=ids)
def test_a_step_that_is_not_finite_leaves_no_trace(settings: Settings, bad: int) -> None:
    training, twin = Training(settings), Training(settings)
    for one in (training, twin):
        one.step(0, deferred=True, parts=2)
    begin = training.state()
    outcome = training.step(1, deferred=True, parts=2, bad=bad)
    assert not outcome.finite
    assert not outcome.values["loss"].isfinite()
    assert_equal(training.state(), begin)
    for one in (training, twin):
        assert one.step(2, deferred=True).finite
    assert_equal(training.state(), twin.state())


def test_the_first_step_may_fail() -> None:
    training, twin = Training(CHOICES[0]), Training(CHOICES[0])
    assert not training.step(0, deferred=True, bad=0).finite
    for one in (training, twin):
        assert one.step(1, deferred=True).finite
    assert_equal(training.state(), twin.state())
    assert not hasattr(training.optimizer, "found_inf")


@pytest.mark.parametrize("bad", [None, 0], ids=["finite", "not finite"])
@pytest.mark.parametrize("settings", CHOICES, ids=ids)
def test_nothing_is_read_on_the_host(settings: Settings, bad: int | None) -> None:
    training = Training(settings)
    with NothingIsRead():
        outcome = training.step(0, deferred=True, parts=2, bad=bad)
    assert bool(outcome.finite) is (bad is None)
    with pytest.raises(AssertionError, match="waits for the device"), NothingIsRead():
        training.step(1, deferred=False)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])  # it alone says when it is waited for
@pytest.mark.parametrize("settings", CHOICES, ids=ids)
def test_cuda_is_not_waited_for(settings: Settings, device: str) -> None:
    training = Training(settings, device)
    training.step(0, deferred=None, parts=2)  # constants come to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = training.step(1, deferred=None, parts=2)
        after = training.state()
        discarded = training.step(2, deferred=None, parts=2, bad=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken.finite
    assert not discarded.finite
    assert_equal(training.state(), after)


def test_every_state_names_what_it_changes() -> None:
    """A state that changes more than it names would keep traces of a failed step."""
    for settings in CHOICES:
        training = Training(settings)
        for module in (m for m in training.student_teacher.modules() if isinstance(m, DeferredState)):
            named = {id(tensor) for tensor in module.changing()}
            others = [t for t in (*module.parameters(), *module.buffers()) if id(t) not in named]
            before = [t.clone() for t in others]
            module.update()
            assert all(torch.equal(t, old) for t, old in zip(others, before, strict=True))


@pytest.mark.parametrize("ok", [True, False])
@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("momentum", [0.996, 0.3, 0.0, 1.0])
@pytest.mark.parametrize("device", DEVICES)
def test_the_teacher_moves_where_the_step_is_fine(device: str, momentum: float, plain: bool, ok: bool) -> None:
    student_teacher, twin = tiny_student_teacher().to(device), tiny_student_teacher().to(device)
    for one in (student_teacher, twin):
        for i, parameter in enumerate(one.student.parameters()):
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.manual_seed(i)).to(device))
    with use_references() if plain else contextlib.nullcontext():
        ema_update(student_teacher.teacher, student_teacher.student, momentum, torch.tensor(ok, device=device))
        if ok:
            ema_update(twin.teacher, twin.student, momentum)
    assert_equal(student_teacher.teacher.state_dict(), twin.teacher.state_dict())


def test_only_a_fused_adamw_skips_by_itself() -> None:
    student_teacher = tiny_student_teacher()
    assert can_step_if_finite(make_optimizer(student_teacher, OptimizerConfig()))
    assert not any(
        can_step_if_finite(make_optimizer(student_teacher, OptimizerConfig(name=name))) for name in ("sgd", "lars")
    )
    with use_references():
        assert not can_step_if_finite(make_optimizer(student_teacher, OptimizerConfig()))


class Batches:
    """A loader whose batches are made from the number of their step."""

    batch_size = 4

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}

    def steps(self, first: int, last: int) -> Iterator[list[Any]]:
        return ([tiny_views(4, seed=step)] for step in range(first, last))


@pytest.mark.parametrize("deferred", [False, True], ids=["waited for", "deferred"])
def test_training_gives_up_at_the_step_that_was_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deferred: bool
) -> None:
    student_teacher, bad = tiny_student_teacher(), {1, 2, 4, 5, 6}

    def step(
        model: StudentTeacher, batches: list[Views], optimizer: Any, hp: Hyperparameters, *args: Any, **others: Any
    ) -> Any:
        with not_finite(model, micro_batch=0) if hp.step in bad else contextlib.nullcontext():
            return training_step(model, batches, optimizer, hp, *args, **others, deferred=deferred)

    monkeypatch.setattr(trainer, "training_step", step)
    config = tiny_config(epochs=3, optimizer={"freeze_last_layer_epochs": 0})
    with pytest.raises(NonFiniteError, match="for 3 steps in a row, up to step 7"):
        train(
            student_teacher,
            Batches(),
            make_schedule(config, steps_per_epoch=4),
            make_optimizer(student_teacher, OptimizerConfig()),
            RunDirectory.create(tmp_path / "run", config.to_dict()),
            device=torch.device("cpu"),
            seed=0,
            watch=WatchConfig(),
            checkpoint=CheckpointConfig(max_nonfinite=3),
            logging=LoggingConfig(loggers=()),
        )
    (file,) = (tmp_path / "run" / "failed").iterdir()
    saved = torch.load(file, weights_only=True)
    assert saved["step"] == 7
    assert torch.equal(saved["batches"][0]["global_crops"], tiny_views(4, seed=6).global_crops)
    counts = {int(adam["step"]) for adam in saved["state"]["optimizer"]["state"].values()}
    assert counts == {2}, "steps 0 and 3 were taken"
