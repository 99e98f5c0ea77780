"""The whole algorithm: the `StudentTeacher`, one step, and the loop over steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.core.distributed import (
    all_ranks,
    all_reduce_mean,
    any_rank,
    barrier,
    is_distributed,
    is_main_process,
    rank,
)
from selfpatch.core.seeds import step_seed
from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.data.collate import Batch
from selfpatch.data.prefetch import prefetched
from selfpatch.models.branch import Branch
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.ops.collapse import effective_rank
from selfpatch.ops.images import normalise
from selfpatch.training.checkpointing import Checkpointer, Saving
from selfpatch.training.collapse import CollapseDetector, RegressionDetector
from selfpatch.training.loggers.metrics import MetricsLogger
from selfpatch.training.nonfinite import DeferredFlag, NonFiniteCounter
from selfpatch.training.optim import (
    Schedule,
    can_step_if_finite,
    clip_gradients,
    freeze_gradients,
    set_hyperparameters,
    step_if_finite,
)
from selfpatch.training.progress import ProgressBar, Throughput
from selfpatch.training.signals import StopSignals


def union_of_needs(objectives: Mapping[str, Objective]) -> Needs:
    """What decides which data is made, and what the teacher sees."""
    needs = Needs()
    for objective in objectives.values():
        needs |= objective.needs
    return needs


class StudentTeacher(nn.Module):
    """Student, teacher, an image-level method and any patch-level objectives. DDP wraps the whole: one forward a step.

    Args:
        student: its pool and heads are those that the objectives ask for.
        objectives: by name, the image-level method first.
        loss_weights: weight of each loss by its name.
    """

    def __init__(self, student: Branch, objectives: Mapping[str, Objective], loss_weights: Mapping[str, float]) -> None:
        super().__init__()
        self.student = student
        self.teacher = student.make_teacher()
        self.objectives = nn.ModuleDict(objectives)
        self.loss_weights = dict(loss_weights)
        self.needs = union_of_needs(objectives)

    def forward(self, views: Views, hp: Hyperparameters, with_meters: bool = False) -> dict[str, Tensor]:
        """The weighted sum of the losses as `loss`, each unweighted loss by its name and, if asked for, the teacher's
        meters.
        """
        student_crops = self._normalised(views)
        teacher_crops = student_crops if self.needs.teacher_on_local_crops else student_crops[:1]
        with torch.no_grad():
            teacher = self.teacher(teacher_crops)
        student = self.student(student_crops, views.masks if self.needs.masks else None)
        losses: dict[str, Tensor] = {}
        for objective in self.objectives.values():
            losses |= objective(student, teacher, views, hp)
        total = torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        return {"loss": total, **losses, **(self._meters(teacher, hp) if with_meters else {})}

    def _normalised(self, views: Views) -> list[Tensor]:
        """The crops of each resolution as the network's input."""
        backbone = self.student.backbone
        groups = [views.global_crops]
        if views.local_crops is not None and self.needs.local_crops:
            groups.append(views.local_crops)
        return [normalise(crops, backbone.mean, backbone.std) for crops in groups]

    @torch.no_grad()
    def _meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        meters = {
            "effective_rank": effective_rank(teacher.image.flatten(0, 1)),
            "patch_rank": effective_rank(teacher.tokens_per_resolution[0].raw_patches.flatten(0, 2)),
        }
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            meters |= objective.meters(teacher, hp)
        return meters

    def deferred_states(self) -> Iterator[DeferredState]:
        return (module for module in self.modules() if isinstance(module, DeferredState))

    def finish_step(self, teacher_momentum: float, ok: Tensor | None = None) -> None:
        """After the optimizer's step: centres and queues take in the batch, the teacher follows the student.

        Args:
            ok: a bool on the device: where it is False, nothing is kept. None: the step is known to be finite.
        """
        for state in self.deferred_states():
            if ok is None:
                state.update()
            else:
                state.update_where(ok)
        self.teacher.ema_update(self.student, teacher_momentum, ok)

    def discard_step(self) -> None:
        """After a step that was not finite: nothing of it is kept."""
        for state in self.deferred_states():
            state.discard()


@dataclass(frozen=True)
class Clipping:
    largest: float
    mode: Literal["tensor", "global"]


@dataclass(frozen=True)
class StepOutcome:
    values: dict[str, Tensor]
    """Losses, gradient norm and meters by name."""
    verdict: DeferredFlag
    """Whether loss and gradient were finite on all processes; if not, nothing was changed."""
    stop: bool
    """Whether any process wishes to stop."""

    @property
    def taken(self) -> bool:
        """The verdict; waits for the device."""
        return bool(self.verdict)


def training_step(
    model: nn.Module,
    micro_batches: Sequence[Views],
    optimizer: torch.optim.Optimizer,
    hp: Hyperparameters,
    *,
    clipping: Clipping,
    autocast: torch.dtype | None = None,
    with_meters: bool = False,
    stop_requested: bool = False,
    deferred: bool | None = None,
) -> StepOutcome:
    """One step of the algorithm: forward, backward, clip, AdamW, centres, teacher.

    Args:
        model: a `StudentTeacher`, or DDP around one.
        micro_batches: their mean is the batch; gradients and centres are those of the whole.
        stop_requested: on this process; any process's wish counts on all.
        deferred: the device decides by itself whether the step is taken, and is not waited for; the result is the same.
            None: so on CUDA, where the optimizer can (a fused AdamW).

    Returns:
        What came of it; the values are means over the micro-batches, meters those of the last.
    """
    pretrainer: StudentTeacher = model.module if isinstance(model, DistributedDataParallel) else model  # type: ignore[assignment]
    device_type = micro_batches[0].global_crops.device.type
    set_hyperparameters(optimizer, hp)
    optimizer.zero_grad(set_to_none=True)
    outputs: list[dict[str, Tensor]] = []
    for i, views in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        waits = contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with waits:
            with torch.autocast(device_type, autocast, enabled=autocast is not None):
                output = model(views, hp, with_meters and last)
            (output["loss"] / len(micro_batches)).backward()
        outputs.append({name: value.detach() for name, value in output.items()})
    if hp.freeze_last_layer:
        freeze_gradients(pretrainer, ".last_layer.")
    if hp.freeze_backbone:
        freeze_gradients(pretrainer, "student.backbone.trunk.")
    norm = clip_gradients(pretrainer.parameters(), clipping.largest, clipping.mode)
    result = {name: torch.stack([o[name] for o in outputs if name in o]).mean() for name in outputs[-1]}
    ok, (stop,) = all_ranks(torch.isfinite(result["loss"] + norm)), any_rank(stop_requested)
    verdict = DeferredFlag(ok)
    if deferred is None:
        deferred = device_type == "cuda" and can_step_if_finite(optimizer)
    if deferred:
        step_if_finite(optimizer, ok)
        pretrainer.finish_step(hp.teacher_momentum, ok)
    elif verdict:
        optimizer.step()
        pretrainer.finish_step(hp.teacher_momentum)
    else:
        pretrainer.discard_step()
    return StepOutcome(result | {"grad_norm": norm}, verdict, stop)


class StepLoader(Protocol):
    """Gives the micro-batches of each step from `first` up to `last`; `selfpatch.data.loader.CropLoader` is one."""

    batch_size: int
    bad: dict[str, str]

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]: ...


@dataclass(frozen=True)
class LoopSettings:
    """What decides how a run is watched and saved, and nothing about its result, but for seed and precision."""

    seed: int = 0
    autocast: torch.dtype | None = None
    log_every: int = 10
    evaluate_every: float = 1
    """Epochs between two measurements; 0: at the end only."""
    guard_features: bool = False
    """The weights are not fresh: say when a measurement falls below that of step 0."""
    max_nonfinite: int = 5
    saving: Saving = field(default_factory=Saving)


Evaluate = Callable[[StudentTeacher, int], Mapping[str, float]]
"""Measures the pretrainer's teacher after so many steps; called on the main process only."""


def train(
    pretrainer: StudentTeacher,
    loader: StepLoader,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    run: RunDirectory,
    *,
    device: torch.device,
    clipping: Clipping,
    settings: LoopSettings,
    evaluate: Evaluate | None = None,
) -> int:
    """Trains to the end of the schedule, from the run's newest checkpoint if it has one.

    Returns:
        0 at the end of the schedule; the signal's number where a signal stopped it, after a checkpoint.

    Raises:
        NonFinite: the loss or gradient was not finite `max_nonfinite` steps in a row.
    """
    log = MetricsLogger(run.path)
    keeper = Checkpointer(run, pretrainer, pretrainer.student, optimizer, schedule.steps_per_epoch, settings.saving)
    first = keeper.restore()
    if is_main_process():
        log.rewind(first + 1 if first else 0)  # a record of step s is made with s steps done
    model = DistributedDataParallel(pretrainer, broadcast_buffers=False) if is_distributed() else pretrainer
    pretrainer.train()
    total = schedule.total_steps
    every = max(1, round(settings.evaluate_every * schedule.steps_per_epoch)) if settings.evaluate_every else total
    measured_at = {total, *range(0, total, every)}
    failures = NonFiniteCounter(settings.max_nonfinite)
    watch = CollapseDetector(first_step=min(total // 10, schedule.steps_per_epoch))
    if evaluate is not None and is_main_process() and first in {0, *measured_at} and not _was_measured(log, first):
        log.record({"step": first, **_measured(evaluate, pretrainer, first)})  # or it was stopped before it could be
    speed = Throughput()
    with (
        StopSignals() as signals,
        ProgressBar(total, loader.batch_size, enabled=is_main_process()) as bar,
        contextlib.closing(log),
        contextlib.closing(prefetched(loader.steps(first, total), device)) as stream,
    ):
        for step, batches in enumerate(stream, start=first):
            hp, done = schedule(step), step + 1
            logs = done % settings.log_every == 0 or done == total
            torch.manual_seed(step_seed(settings.seed, step, rank()))
            outcome = training_step(
                model,
                batches,
                optimizer,
                hp,
                clipping=clipping,
                autocast=settings.autocast,
                with_meters=logs,
                stop_requested=signals.requested is not None,
            )
            speed.add(loader.batch_size)
            if failures.too_many(outcome.verdict):
                raise keeper.give_up([views.to("cpu") for views in batches], done, settings.max_nonfinite)
            if logs:
                _log(log, bar, watch, hp, outcome.values, ("loss", *pretrainer.loss_weights), speed, done)
            run.note_skipped(loader.bad)
            with speed.pause():
                if evaluate and is_main_process() and done in measured_at and not outcome.stop:
                    metrics = _measured(evaluate, pretrainer, done)
                    log.record({"step": done, **metrics})
                    at_start = next((row for row in log.rows() if row["step"] == 0), {})
                    bar.say(_beside(metrics, at_start, "at first" if settings.guard_features else "untrained", done))
                    if settings.guard_features and (warning := RegressionDetector(at_start).check(metrics)):
                        bar.say(f"warning: {warning}")
                keeper.save_if_due(done, force=outcome.stop or done == total)
            if outcome.stop and done < total:
                return signals.requested or signal.SIGTERM
    barrier()
    return 0


def _was_measured(log: MetricsLogger, step: int) -> bool:
    """Losses of a step are recorded too, before it is measured."""
    return any(row["step"] == step and "loss" not in row for row in log.rows())


def _measured(evaluate: Evaluate, pretrainer: StudentTeacher, done: int) -> Mapping[str, float]:
    """In evaluation mode, in which batch norms go by their running statistics."""
    pretrainer.eval()
    metrics = evaluate(pretrainer, done)
    pretrainer.train()
    return metrics


def _beside(metrics: Mapping[str, float], first: Mapping[str, float], start: str, done: int) -> str:
    """One line: each metric after so many steps, and in brackets what step 0 recorded of it and of its floors."""
    parts = []
    for name, value in metrics.items():
        beside = {key.removeprefix(name).strip("_") or start: first[key] for key in first if key.startswith(name)}
        floors = ", ".join(f"{words.replace('_', ' ')} {floor:.4f}" for words, floor in beside.items())
        parts.append(f"{name.replace('_', ' ')} {value:.4f}" + (f" ({floors})" if floors else ""))
    return f"step {done}: {'  '.join(parts)}"


def _log(
    log: MetricsLogger,
    bar: ProgressBar,
    watch: CollapseDetector,
    hp: Hyperparameters,
    values: Mapping[str, Tensor],
    losses: Sequence[str],
    speed: Throughput,
    done: int,
) -> None:
    """One line of metrics, with `done` steps behind it, on the screen and on disk."""
    means = all_reduce_mean(torch.stack([value.float() for value in values.values()])).tolist()
    if not is_main_process():
        return
    numbers = dict(zip(values, means, strict=True))
    row = {
        "step": done,
        "epoch": hp.epoch,
        **numbers,
        "lr": hp.lr,
        "weight_decay": hp.weight_decay,
        "teacher_momentum": hp.teacher_momentum,
        "teacher_temp": hp.teacher_temp,
        "images_per_second": speed.images_per_second,
    }
    log.record(row)
    shown = {name: numbers[name] for name in losses}
    bar.update(done, epoch=hp.epoch + 1, images_per_second=speed.images_per_second, losses=shown, lr=hp.lr)
    warning = watch.check(done, numbers)
    if warning:
        bar.say(f"warning: {warning}")
