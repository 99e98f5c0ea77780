"""One training step, and the loop over steps."""

import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.config.sections import CheckpointConfig, OptimizerConfig, WatchConfig
from selfpatch.core import distributed
from selfpatch.core.deferred_flag import DeferredFlag
from selfpatch.core.seeds import step_seed
from selfpatch.core.types import Hyperparameters, Views
from selfpatch.data.loader import CropLoader
from selfpatch.data.prefetch import prefetched
from selfpatch.training import optim
from selfpatch.training.anchor import shapes
from selfpatch.training.checkpointing import Checkpointer
from selfpatch.training.monitor import Evaluate, Monitor
from selfpatch.training.nonfinite import NonFiniteCounter
from selfpatch.training.parallel import data_parallel
from selfpatch.training.signals import StopSignals
from selfpatch.training.student_teacher import StudentTeacher


def evaluation_steps(config: WatchConfig, steps_per_epoch: int, total_steps: int) -> set[int]:
    """Return after how many steps a training of `total_steps` is evaluated; 0 and the last are among them."""
    interval = max(1, round(config.evaluate_every * steps_per_epoch)) if config.evaluate_every else total_steps
    return {total_steps, *range(0, total_steps, interval)}


@dataclass(frozen=True)
class StepOutcome:
    """Result of one step."""

    values: dict[str, Tensor]
    """Losses, gradient norm and meters by name."""
    finite: DeferredFlag
    """True if loss and gradient were finite on all processes; if not, the step changed nothing. Reading it waits for
    the device."""
    stop: bool
    """True if any process requests a stop."""


def training_step(
    model: nn.Module,
    micro_batches: Sequence[Views],
    optimizer: torch.optim.Optimizer,
    hp: Hyperparameters,
    config: OptimizerConfig,
    *,
    autocast: torch.dtype | None = None,
    with_meters: bool = False,
    stop_requested: bool = False,
    deferred: bool | None = None,
) -> StepOutcome:
    """Take one step: forward, backward, clip, optimizer, centres, teacher.

    `model` is a `StudentTeacher`, whose parameters may be sharded, or DDP around one. Gradients and centres use the
    whole batch, losses are means over micro-batches; `with_meters` adds the meters of the last one. The forward pass
    runs in `autocast`, or in float32. If one process has `stop_requested`, all of them stop.

    If `deferred`, the device decides whether the step is taken, and nothing waits for it; the result is the same. If
    None, enabled on CUDA when the optimizer is a fused AdamW.
    """
    student_teacher: StudentTeacher = model.module if isinstance(model, DistributedDataParallel) else model  # type: ignore[assignment]
    device_type = micro_batches[0].device.type
    optim.set_hyperparameters(optimizer, hp)
    optimizer.zero_grad(set_to_none=True)
    outputs: list[dict[str, Tensor]] = []
    for i, views in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        # DDP reduces gradients once, with the last micro-batch; FSDP2 each time, since it holds parts of them alone.
        accumulating = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if accumulating else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device_type, autocast, enabled=autocast is not None):
                output = model(views, hp, with_meters and last)
            (output["loss"] / len(micro_batches)).backward()
        outputs.append({name: value.detach() for name, value in output.items()})
    if hp.freeze_last_layer:
        optim.freeze_gradients(student_teacher, ".last_layer.")
    if hp.freeze_backbone:
        optim.freeze_gradients(student_teacher, "student.backbone.trunk.")
    norm = optim.clip_gradients(student_teacher.parameters(), config.clip, config.clip_mode)
    values = {name: torch.stack([o[name] for o in outputs if name in o]).mean() for name in outputs[-1]}
    ok, (stop,) = distributed.all_ranks(torch.isfinite(values["loss"] + norm)), distributed.any_rank(stop_requested)
    finite = DeferredFlag(ok)
    if deferred is None:
        deferred = device_type == "cuda" and optim.can_step_if_finite(optimizer)
    if deferred:
        optim.step_if_finite(optimizer, ok)
        student_teacher.finish_step(hp.teacher_momentum, ok)
    elif finite:
        optimizer.step()
        student_teacher.finish_step(hp.teacher_momentum)
    else:
        student_teacher.discard_step()
    if student_teacher.anchor is not None:
        student_teacher.anchor.refresh_if_due(student_teacher.teacher, hp.step + 1)
    return StepOutcome(values | {"grad_norm": norm}, finite, stop)


def train(
    student_teacher: StudentTeacher,
    loader: CropLoader,
    schedule: optim.Schedule,
    optimizer: torch.optim.Optimizer,
    run: RunDirectory,
    *,
    watch: WatchConfig,
    checkpoint: CheckpointConfig,
    logging: LoggingConfig,
    device: torch.device,
    seed: int,
    autocast: torch.dtype | None = None,
    pretrained: bool = False,
    evaluate: Evaluate | None = None,
) -> int:
    """Train to the end of the schedule, from the run's newest checkpoint if it has one.

    The network is on `device`. `seed` decides what the steps draw, such as drop path. The forward pass runs in
    `autocast`, or in float32. If the initial weights are `pretrained`, a metric that falls below step 0 is reported.

    Returns:
        0 at the end of the schedule, or the number of the signal that stopped training after a checkpoint.

    Raises:
        NonFiniteError: the loss or gradient was not finite `checkpoint.max_nonfinite` steps in a row.
    """
    per_epoch, total = schedule.steps_per_epoch, schedule.total_steps
    described = shapes(student_teacher.student.backbone, student_teacher.anchor)
    checkpointer = Checkpointer(checkpoint, run, student_teacher, described, optimizer, per_epoch)
    first = checkpointer.restore()
    model = data_parallel(student_teacher.train())
    monitor = Monitor(
        run, student_teacher, schedule, logging, batch_size=loader.batch_size, first=first, evaluate=evaluate,
        evaluated_at=evaluation_steps(watch, per_epoch, total), pretrained=pretrained,
    )  # fmt: skip
    monitor.say_where_it_continues(first, total)
    monitor.evaluate_at_start(first)
    nonfinite = NonFiniteCounter(checkpoint.max_nonfinite)
    with (
        StopSignals(alone=not distributed.is_distributed()) as signals,
        monitor.shown(),
        contextlib.closing(prefetched(loader.steps(first, total), device)) as stream,
    ):
        done = first
        awaited = checkpointer.saved_if_loading_fails(signals.until_requested(stream), first)
        for step, batches in enumerate(awaited, start=first):
            hp, done = schedule(step), step + 1
            log_now = done % watch.log_every == 0 or done == total
            torch.manual_seed(step_seed(seed, step, distributed.rank()))
            outcome = training_step(
                model, batches, optimizer, hp, schedule.config,
                autocast=autocast, with_meters=log_now, stop_requested=signals.requested is not None,
            )  # fmt: skip
            monitor.count_step()
            if nonfinite.reaches_limit(outcome.finite):
                raise checkpointer.dump_failed_step([views.to("cpu") for views in batches], done)
            if log_now:
                monitor.record(hp, outcome.values | student_teacher.uniform_losses(batches))
            run.note_skipped(loader.bad)
            if done < total and (outcome.stop or signals.leaves_now):
                break
            with monitor.pause():
                monitor.evaluate_if_due(done)
                checkpointer.save_if_due(done, force=done == total)
        if done < total:  # stopped after a step, or while a batch was awaited
            checkpointer.save_if_due(done, force=True)
            # One rank may leave before the signal reaches it; a scheduler must learn the same reason from all of them.
            return next((n for n in distributed.gather([signals.requested]) if n is not None), signal.SIGTERM)
    distributed.barrier()
    return 0
