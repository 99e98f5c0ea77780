"""Two processes compute what one does on the same global batch."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.config.sections import OptimizerConfig
from selfpatch.core import distributed
from selfpatch.evaluation.detection.training import average_statistics
from selfpatch.losses.center import Center
from selfpatch.methods.registry import METHODS
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.training.optim import make_optimizer
from selfpatch.training.parallel import data_parallel, shard
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step
from tests.helpers.curves import TOGETHER
from tests.helpers.tiny import (
    hyperparameters,
    movement_error,
    not_finite,
    part_of,
    plain_sgd,
    snapshot,
    tiny_config,
    tiny_student_teacher,
    tiny_views,
    wide_crops,
)
from tests.helpers.workers import WorkerPool

WORLD, BATCH, STEPS = 2, 4, 3


def _train(
    student_teacher: StudentTeacher, model: nn.Module, images: slice, accumulate: int, bad: bool, shape: dict[str, Any]
) -> dict[str, Any]:
    """Some steps on these images of each batch; `bad`: the second step is not finite here."""
    optimizer = plain_sgd(student_teacher)
    outcomes = []
    for step in range(STEPS):
        views = part_of(tiny_views(BATCH, seed=step, **shape), images)
        size = views.batch_size // accumulate
        batches = [part_of(views, slice(i * size, (i + 1) * size)) for i in range(accumulate)]
        with not_finite(student_teacher, micro_batch=0) if bad and step == 1 else contextlib.nullcontext():
            outcomes.append(
                training_step(
                    model, batches, optimizer, hyperparameters(step), OptimizerConfig(clip=0.5, clip_mode="tensor")
                )
            )
    return {
        "state": whole_state(student_teacher),
        "taken": [bool(outcome.finite) for outcome in outcomes],
        "losses": torch.stack([outcome.values["loss"] for outcome in outcomes]),
    }


def whole_state(student_teacher: StudentTeacher) -> dict[str, Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in student_teacher.state_dict().items()
    }


def train_on_a_share(
    rank: int, settings: dict[str, Any], accumulate: int = 1, bad_rank: int | None = None, parallel: str = "ddp"
) -> dict[str, Any]:
    student_teacher = tiny_student_teacher(**settings)
    share = BATCH // WORLD
    if parallel == "fsdp":
        shard(student_teacher, torch.device("cpu"), None)
        assert all(isinstance(parameter, DTensor) for parameter in student_teacher.parameters())
    model = data_parallel(student_teacher)
    assert isinstance(model, DistributedDataParallel) == (parallel == "ddp")
    images = slice(rank * share, (rank + 1) * share)
    return _train(student_teacher, model, images, accumulate, rank == bad_rank, shape_of(settings))


def shape_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `tiny_views`; only the tiny ViT has patches of 4 pixels."""
    return {"scale": 1 if settings.get("model", "vit_tiny") == "vit_tiny" else 2, "wide": "crops" in settings}


CONTRAST = {"agreement": "contrast", "queue_size": 16, "num_prototypes": 4096}  # the latter, its default, is not read
HEADS = {"dino": {"head_norm": True}, "selfpatch": {"head_norm": True}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "accumulate"),
    [
        ({"objective": "none"}, 1),
        ({}, 1),
        ({}, 2),
        (HEADS, 1),
        ({"dino": {"norm_last_layer": False}}, 1),
        *[({"method": method, "objective": "selfpatch+sere"}, 1) for method in METHODS],
        ({"method": "none", "objective": TOGETHER[0]}, 2),
        *[({"method": "none", "objective": objectives}, 1) for objectives in TOGETHER[1:]],
        ({"method": "none", "objective": "leopart", "leopart": {"queue_size": 0, "foreground": False}}, 1),
        ({"method": "none", "objective": "neco", "neco": {"queue_size": 0}}, 1),
        ({"method": "ibot", "objective": "none", "ibot": {"centering": "sinkhorn", "prototypes": "untied"}}, 1),
        ({"method": "ibot", "objective": "none", "ibot": {"patch_loss_on": "all"}}, 2),
        ({"dino": {"centering": "sinkhorn"}, "selfpatch": {"centering": "sinkhorn"}}, 1),
        ({"objective": "koleo", "koleo": {"group_size": 2}}, 1),
        ({"method": "moby", "selfpatch": CONTRAST}, 1),
        ({"backbone": {"frozen_blocks": 1}}, 1),
        ({"objective": "gram", "teacher": None, "anchor": {"refresh_every": 2}}, 1),
        ({"method": "swav", "swav": {"queue_size": 8, "queue_from_epoch": 0}}, 1),
        ({"method": "densecl", "objective": "none", "model": "resnet50"}, 1),
        ({"method": "ibot", "objective": "none", "model": "swin_tiny"}, 1),
        ({"method": "ibot", "objective": "sere", **wide_crops(tiny_config())}, 1),
    ],
    ids=str,
)
def test_two_processes_train_as_one(pool: WorkerPool, settings: dict[str, Any], accumulate: int) -> None:
    assert_two_train_as_one(pool, settings, accumulate)


@pytest.mark.slow
def test_two_processes_train_adapters_as_one(pool: WorkerPool, tmp_path: Path) -> None:
    donor = BranchEncoder(tiny_student_teacher(objective="none").student.backbone, None)
    file = write_safetensors(tmp_path / "donor.safetensors", *export_state(donor))
    assert_two_train_as_one(pool, {"method": "ibot", "init": str(file), "lora": {"rank": 2}}, 2)


def assert_two_train_as_one(pool: WorkerPool, settings: dict[str, Any], accumulate: int) -> None:
    alone = tiny_student_teacher(**settings)
    begin = snapshot(alone)
    expected = _train(alone, alone, slice(None), 1, bad=False, shape=shape_of(settings))
    for parallel in ("ddp", "fsdp"):
        assert_equal(pool.run(train_on_a_share, settings, accumulate, None, parallel), begin, expected, alone)


def assert_equal(
    results: list[dict[str, Any]], begin: dict[str, Tensor], expected: dict[str, Any], alone: StudentTeacher
) -> None:
    for name, tensor in results[0]["state"].items():
        assert torch.equal(tensor, results[1]["state"][name]), f"{name} differs between the processes"
    torch.testing.assert_close(sum(r["losses"] for r in results) / WORLD, expected["losses"], rtol=1e-4, atol=1e-6)
    learned = {name: tensor for name, tensor in expected["state"].items() if tensor.is_floating_point()}
    # Batch norms over a few rows magnify rounding.
    tolerance = 1e-2 if any(isinstance(part, BatchNorm) for part in alone.modules()) else 1e-3
    assert movement_error(begin, results[0]["state"], learned) < tolerance


@pytest.mark.parametrize(("bad_rank", "parallel"), [(0, "ddp"), (1, "fsdp")])
def test_no_process_takes_a_step_that_is_not_finite_on_one(pool: WorkerPool, bad_rank: int, parallel: str) -> None:
    results = pool.run(train_on_a_share, {}, 1, bad_rank, parallel)
    assert [result["taken"] for result in results] == [[True, False, True]] * WORLD
    for name, tensor in results[0]["state"].items():
        assert tensor.isfinite().all()
        assert torch.equal(tensor, results[1]["state"][name])


def defer_on_a_share(rank: int, bad_rank: int, parallel: str) -> tuple[list[bool], list[dict[str, Tensor]]]:
    """A step of the device's own judgement that is finite, one that is not on one process, one that is."""
    student_teacher = tiny_student_teacher(method="moby")
    if parallel == "fsdp":
        shard(student_teacher, torch.device("cpu"), None)
    model, optimizer = data_parallel(student_teacher), make_optimizer(student_teacher, OptimizerConfig())
    outcomes, states = [], []
    for step in range(STEPS):
        views, hp = part_of(tiny_views(BATCH, seed=step), slice(2 * rank, 2 * rank + 2)), hyperparameters(step, lr=1e-3)
        with not_finite(student_teacher, micro_batch=0) if step == 1 and rank == bad_rank else contextlib.nullcontext():
            outcomes.append(
                training_step(model, [views], optimizer, hp, OptimizerConfig(clip=0, clip_mode="tensor"), deferred=True)
            )
        states.append(whole_state(student_teacher))
    return [bool(outcome.finite) for outcome in outcomes], states


@pytest.mark.parametrize(("bad_rank", "parallel"), [(0, "ddp"), (1, "fsdp")])
def test_the_devices_agree_on_whether_a_step_is_taken(pool: WorkerPool, bad_rank: int, parallel: str) -> None:
    for (taken, states), (_, others) in itertools.permutations(pool.run(defer_on_a_share, bad_rank, parallel)):
        assert taken == [True, False, True]
        for name, (first, second, third) in {n: [state[n] for state in states] for n in states[0]}.items():
            assert torch.equal(first, second), f"{name} took the failed step in"
            assert torch.equal(third, others[2][name]), f"{name} differs between the processes"
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[1].items())


def rows(count: int = 6) -> Tensor:
    return torch.randn(count, 3, generator=torch.manual_seed(0), dtype=torch.float64)


def sum_and_its_gradient(rank: int) -> tuple[Tensor, Tensor]:
    x = rows()[rank].requires_grad_()
    total = distributed.all_reduce_sum_with_gradient(x)
    # A loss of each process's own; as under DDP, the loss of the whole is their sum.
    loss = ((rank + 1) * total.square() * torch.arange(3)).sum()
    return total.detach(), torch.autograd.grad(loss, x)[0]


def test_the_sum_with_gradient_is_autograds(pool: WorkerPool) -> None:
    x = rows()[:WORLD].requires_grad_()
    total = x.sum(0)
    loss = sum(((rank + 1) * total.square() * torch.arange(3)).sum() for rank in range(WORLD))
    (gradient,) = torch.autograd.grad(loss, x)
    for rank, (got, got_gradient) in enumerate(pool.run(sum_and_its_gradient)):
        torch.testing.assert_close(got, total.detach())
        torch.testing.assert_close(got_gradient, gradient[rank])


def normalise_a_share(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    norm, x = batch_norm(BatchNorm), wide_rows()[4 * rank : 4 * (rank + 1)].requires_grad_()
    normed = norm(x)
    (normed * upstream()[4 * rank : 4 * (rank + 1)]).sum().backward()
    gradient = norm.weight.grad
    assert gradient is not None
    torch.distributed.all_reduce(gradient)
    assert x.grad is not None
    return normed.detach(), x.grad, gradient


def wide_rows() -> Tensor:
    return 5 + 2 * torch.randn(8, 2, 3, generator=torch.manual_seed(1))


def upstream() -> Tensor:
    return torch.randn(8, 2, 3, generator=torch.manual_seed(2))


def batch_norm(kind: type[nn.BatchNorm1d]) -> nn.BatchNorm1d:
    norm = kind(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    return norm


def test_batch_norm_is_over_the_global_batch(pool: WorkerPool) -> None:
    norm, x = batch_norm(nn.BatchNorm1d), wide_rows().requires_grad_()
    normed = norm(x.flatten(0, 1)).view_as(x)
    (normed * upstream()).sum().backward()
    results = pool.run(normalise_a_share)
    torch.testing.assert_close(torch.cat([r[0] for r in results]), normed.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), x.grad, rtol=1e-4, atol=1e-5)
    for _, _, got in results:
        torch.testing.assert_close(got, norm.weight.grad, rtol=1e-4, atol=1e-5)


def normalise_rows_of_some_processes(rank: int, owners: tuple[int, ...]) -> dict[str, Tensor]:
    norm = BatchNorm(3, running_statistics=True)
    norm(wide_rows() if rank in owners else wide_rows()[:0])
    norm.update()
    return dict(norm.named_buffers())


@pytest.mark.parametrize("owners", [(), (0,), (1,)])
def test_running_statistics_are_of_the_processes_that_have_rows(pool: WorkerPool, owners: tuple[int, ...]) -> None:
    """As of one process that has them all; without any row they stay, in place of moving towards 0."""
    alone = BatchNorm(3, running_statistics=True)
    alone(wide_rows() if owners else wide_rows()[:0])
    alone.update()
    for found in pool.run(normalise_rows_of_some_processes, owners):
        torch.testing.assert_close(found, dict(alone.named_buffers()), rtol=1e-4, atol=1e-5)


def average_rows_of_one_process(rank: int) -> Tensor | None:
    """The first batch has no rows anywhere, the second one has them on one process."""
    norm = BatchNorm(3, running_statistics=True)
    batches = [wide_rows()[:0], wide_rows() if rank else wide_rows()[:0], wide_rows()]
    average_statistics(norm, norm, batches)
    return norm.running_mean


def test_averaged_statistics_leave_out_batches_without_rows(pool: WorkerPool) -> None:
    for mean in pool.run(average_rows_of_one_process):
        torch.testing.assert_close(mean, wide_rows().mean((0, 1)))


def observe_a_share(rank: int) -> Tensor:
    center = Center(3, momentum=0.9)
    for row in rows().float()[2 * rank : 2 * (rank + 1)]:
        center.accumulate(row)
    center.update()
    return center.center


def test_a_center_is_the_mean_over_processes(pool: WorkerPool) -> None:
    for center in pool.run(observe_a_share):
        torch.testing.assert_close(center, 0.1 * rows().float()[: 2 * WORLD].mean(0))


def raise_flags(rank: int) -> tuple[tuple[bool, ...], ...]:
    return distributed.any_rank(rank == 1, False, True, rank == 0), distributed.any_rank(rank == 3)


def describe(rank: int) -> tuple[Any, ...]:
    mean = distributed.all_reduce_mean(torch.tensor([float(rank)], requires_grad=True))
    assert not mean.requires_grad
    return (
        distributed.rank(),
        distributed.world_size(),
        distributed.is_main_process(),
        mean.item(),
        distributed.broadcast_from_main(f"of {rank}"),
    )


def hold_everywhere(rank: int) -> list[bool]:
    return [bool(distributed.all_ranks(torch.tensor(flag))) for flag in (True, rank == 1, rank == 0, False)]


def test_a_flag_holds_where_all_processes_raise_it(pool: WorkerPool) -> None:
    assert pool.run(hold_everywhere) == [[True, False, False, False]] * WORLD
    assert distributed.all_ranks(torch.tensor(True))
    assert not distributed.all_ranks(torch.tensor(False))


def test_a_flag_on_any_process_is_seen_on_all(pool: WorkerPool) -> None:
    assert pool.run(raise_flags) == [((True, False, True, True), (False,))] * WORLD


def test_processes_know_each_other(pool: WorkerPool) -> None:
    assert pool.run(describe) == [(0, 2, True, 0.5, "of 0"), (1, 2, False, 0.5, "of 0")]


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, requires_grad=True)
    assert distributed.all_reduce_sum_with_gradient(x) is x
    mean = distributed.all_reduce_mean(x)
    assert torch.equal(mean, x)
    assert mean.data_ptr() != x.data_ptr(), "a new tensor, that its owner may change"
    assert not mean.requires_grad
    assert distributed.any_rank(True, False) == (True, False)
    assert distributed.broadcast_from_main("here") == "here"
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:cpu"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device '{name}'; use auto, cpu"):
        distributed.start(name)
