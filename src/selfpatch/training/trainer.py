"""Student and teacher, one training step, and the loop over steps."""

import contextlib
import functools
import operator
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfpatch.checkpoints.run_dir import RunDirectory, sheet_of
from selfpatch.config.logging import LoggingConfig
from selfpatch.config.sections import CheckpointConfig, OptimizerConfig, WatchConfig
from selfpatch.core import distributed
from selfpatch.core.deferred_flag import DeferredFlag
from selfpatch.core.seeds import step_seed
from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.data.loader import CropLoader
from selfpatch.data.prefetch import prefetched
from selfpatch.models.anchor import Anchor
from selfpatch.models.branch import Branch
from selfpatch.models.layers.deferred_state import deferred_states
from selfpatch.models.layers.ema import ema_update
from selfpatch.ops.images import normalise
from selfpatch.training import optim
from selfpatch.training.anchor import shapes
from selfpatch.training.checkpointing import Checkpointer
from selfpatch.training.collapse import UNIFORM, CollapseDetector, UniformLossDetector, regression_warning
from selfpatch.training.loggers.metrics import MetricsLogger, read_numbers
from selfpatch.training.meters import token_meters
from selfpatch.training.nonfinite import NonFiniteCounter
from selfpatch.training.progress import ProgressBar, Throughput, describe_metrics
from selfpatch.training.signals import StopSignals

Evaluate = Callable[["StudentTeacher", int], Mapping[str, float]]
"""Measures the teacher after a number of steps."""
SCHEDULED = ("epoch", "lr", "weight_decay", "teacher_momentum", "teacher_temp")
"""Hyperparameters that are recorded."""


def union_of_needs(objectives: Mapping[str, Objective]) -> Needs:
    """Return which views and masks are made for all objectives together, and which views the teacher sees."""
    return functools.reduce(operator.or_, (objective.needs for objective in objectives.values()))


class StudentTeacher(nn.Module):
    """A student, its teacher, an image-level method and any patch-level objectives.

    DDP wraps the whole module, so that a step is one forward pass.

    Args:
        student: backbone, and the pool and heads of the objectives.
        objectives: the image-level method, then the patch-level objectives, by name.
        loss_weights: weight of each loss by its name.
        anchor: what some objectives compare the student with, instead of the teacher.
    """

    def __init__(
        self,
        student: Branch,
        objectives: Mapping[str, Objective],
        loss_weights: Mapping[str, float],
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = student.make_teacher()
        self.anchor = anchor
        for objective in objectives.values():
            objective.start_teacher(dict(self.teacher.heads.items()))
        self.objectives = nn.ModuleDict(objectives)
        self.loss_weights = dict(loss_weights)
        self.needs = union_of_needs(objectives)
        if self.needs.class_attention:
            self.teacher.backbone.keep_class_attention()

    def forward(self, views: Views, hp: Hyperparameters, with_meters: bool = False) -> dict[str, Tensor]:
        """Return the weighted sum of the losses as `loss`, each unweighted loss, and the meters if `with_meters`."""
        crops = self._needed_crops(views)
        student_crops = [crops[name] for name in ("global_crops", "local_crops") if name in crops]
        clean_crops = crops.get("clean_crops")
        sees = {"global_crops": self.needs.teacher_on_global_crops, "local_crops": self.needs.teacher_on_local_crops}
        teacher_crops = [crops[name] for name, seen in sees.items() if seen and name in crops]
        with torch.no_grad():
            teacher = self.teacher(teacher_crops, pair_crops=clean_crops)
        anchor = self.anchor(views) if self.anchor is not None and hp.step >= self.anchor.first_step else None
        masks = views.masks if self.needs.masks else None
        student = self.student(student_crops, masks, crops.get("contained_crops"))
        losses: dict[str, Tensor] = {}
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            if objective.needs.anchor and anchor is None:  # before its first refresh
                losses |= dict.fromkeys(objective.loss_weights, 0 * student.tokens_per_resolution[0].patches.sum())
            else:
                losses |= objective(student, anchor if objective.needs.anchor else teacher, views, hp)
        total = torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        measured = teacher if teacher_crops or clean_crops is not None else student
        return {"loss": total, **losses, **(self._meters(measured, hp) if with_meters else {})}

    def _needed_crops(self, views: Views) -> dict[str, Tensor]:
        """Return the crops [V, B, C, S, S'] that are needed and there, normalised, by their names in `Views`."""
        backbone, needs = self.student.backbone, self.needs
        needed = {
            "global_crops": needs.global_crops,
            "local_crops": needs.local_crops,
            "clean_crops": needs.pairs,
            "contained_crops": needs.pairs,
        }
        there = {name: crops for name, crops in views.tensors().items() if needed.get(name)}
        return {name: normalise(crops, backbone.mean, backbone.std) for name, crops in there.items()}

    @torch.no_grad()
    def _meters(self, seen: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Return the meters of the teacher's output for a batch, or of the student's if nothing asks the teacher."""
        meters = token_meters(seen)
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            meters |= objective.meters(seen, hp)
        return meters

    def uniform_losses(self, micro_batches: Sequence[Views]) -> dict[str, Tensor]:
        """Return the value of each loss for uniform predictions as `uniform_NAME`, the mean over micro-batches."""
        values: dict[str, list[float]] = {}
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            for views in micro_batches:
                for name, value in objective.uniform_losses(views).items():
                    values.setdefault(UNIFORM + name, []).append(value)
        device = micro_batches[0].device
        return {name: torch.tensor(of_batches, device=device).mean() for name, of_batches in values.items()}

    def finish_step(self, teacher_momentum: float, ok: Tensor | None = None) -> None:
        """Update centres and queues, and the teacher: teacher <- m * teacher + (1 - m) * student.

        Where `ok`, a bool scalar on the device, is False, nothing changes. If None, the step is known to be finite.
        """
        for state in deferred_states(self):
            if ok is None:
                state.update()
            else:
                state.update_where(ok)
        ema_update(self.teacher, self.student, teacher_momentum, ok)

    def discard_step(self) -> None:
        """Forget what centres and queues accumulated in a step that was not finite."""
        for state in deferred_states(self):
            state.discard()


def data_parallel(student_teacher: StudentTeacher) -> nn.Module:
    """Return the network within DDP if there are several processes, else itself."""
    if distributed.is_distributed():
        return DistributedDataParallel(student_teacher, broadcast_buffers=False)
    return student_teacher


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
    """True if loss and gradient were finite on all processes; if not, the step changed nothing."""
    stop: bool
    """True if any process requests a stop."""

    @property
    def taken(self) -> bool:
        """True if the step changed the network; waits for the device."""
        return bool(self.finite)


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

    `model` is a `StudentTeacher`, or DDP around one. Gradients and centres use the whole batch, losses are means over
    micro-batches; `with_meters` adds the meters of the last one. The forward pass runs in `autocast`, or in float32. If
    one process has `stop_requested`, all of them stop.

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
        # Gradients are reduced over the processes once, with the last micro-batch.
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
    backbone, per_epoch = student_teacher.student.backbone, schedule.steps_per_epoch
    described = shapes(backbone, student_teacher.anchor)
    checkpointer = Checkpointer(checkpoint, run, student_teacher, described, optimizer, per_epoch)
    first, log = checkpointer.restore(), MetricsLogger(run, logging)
    if distributed.is_main_process():
        log.rewind(first + 1 if first else 0)  # a record of step s is made after s steps
    else:
        evaluate = None
    model, losses = data_parallel(student_teacher.train()), ("loss", *student_teacher.loss_weights)
    total = schedule.total_steps
    evaluated_at = evaluation_steps(watch, per_epoch, total)
    nonfinite = NonFiniteCounter(checkpoint.max_nonfinite)
    detectors = (CollapseDetector(first_step=min(total // 10, per_epoch)), UniformLossDetector(first_step=total // 2))
    if evaluate and first in evaluated_at and not log.has_evaluation(first):
        _evaluate(evaluate, student_teacher, run, log, first)  # new, or stopped before this evaluation
    throughput = Throughput()
    with (
        StopSignals(alone=not distributed.is_distributed()) as signals,
        ProgressBar(total, loader.batch_size, enabled=distributed.is_main_process()) as bar,
        contextlib.closing(log),
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
            throughput.add(loader.batch_size)
            if nonfinite.reaches_limit(outcome.finite):
                raise checkpointer.dump_failed_step([views.to("cpu") for views in batches], done)
            if log_now:
                speed = throughput.images_per_second
                values = outcome.values | student_teacher.uniform_losses(batches)
                numbers = _log(log, hp, values, losses, speed)
                shown = {name: numbers[name] for name in losses}
                bar.update(done, epoch=hp.epoch + 1, images_per_second=speed, losses=shown, lr=hp.lr)
                bar.warn(*(detector.check(done, numbers) for detector in detectors))
            run.note_skipped(loader.bad)
            if done < total and (outcome.stop or signals.leaves_now):
                break
            with throughput.pause():
                if evaluate and done in evaluated_at:
                    metrics = _evaluate(evaluate, student_teacher, run, log, done)
                    at_start = next((row for row in read_numbers(run.path) if row["step"] == 0), {})
                    bar.say(describe_metrics(metrics, at_start, "at first" if pretrained else "untrained", done))
                    bar.warn(regression_warning(metrics, at_start) if pretrained else None)
                checkpointer.save_if_due(done, force=done == total)
        if done < total:  # stopped after a step, or while a batch was awaited
            checkpointer.save_if_due(done, force=True)
            return signals.requested or signal.SIGTERM
    distributed.barrier()
    return 0


def _evaluate(
    evaluate: Evaluate, student_teacher: StudentTeacher, run: RunDirectory, log: MetricsLogger, done: int
) -> Mapping[str, float]:
    """Measure the network in evaluation mode, in which batch norms use running statistics, and record the metrics."""
    student_teacher.eval()
    metrics = evaluate(student_teacher, done)
    student_teacher.train()
    sheet = sheet_of(run.pictures, done)
    log.record(done, eval=metrics, pictures={"pictures/patch_features": sheet} if sheet.is_file() else {})
    return metrics


def _log(
    log: MetricsLogger, hp: Hyperparameters, values: Mapping[str, Tensor], losses: Sequence[str], speed: float
) -> dict[str, float]:
    """Record the means over the processes of losses and meters of a step, and return them."""
    means = distributed.all_reduce_mean(torch.stack([value.float() for value in values.values()])).tolist()
    numbers = dict(zip(values, means, strict=True))
    if distributed.is_main_process():
        of_losses = {name: value for name, value in numbers.items() if name.removeprefix(UNIFORM) in losses}
        meters = {name: value for name, value in numbers.items() if name not in of_losses}
        scheduled = {name: getattr(hp, name) for name in SCHEDULED}
        log.record(hp.step + 1, schedule=scheduled, loss=of_losses, meters=meters, speed={"images_per_second": speed})
    return numbers
