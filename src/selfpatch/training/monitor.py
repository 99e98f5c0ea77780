"""Records of losses and metrics of a training, its progress bar, and its warnings."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from selfpatch.checkpoints.run_dir import RunDirectory, sheet_of
from selfpatch.config.logging import LoggingConfig
from selfpatch.core import distributed
from selfpatch.core.types import Hyperparameters
from selfpatch.models.branch import Branch
from selfpatch.training.collapse import UNIFORM, CollapseDetector, UniformLossDetector, regression_warning
from selfpatch.training.loggers.metrics import MetricsLogger, read_numbers
from selfpatch.training.optim import Schedule
from selfpatch.training.parallel import whole_teacher
from selfpatch.training.progress import ProgressBar, Throughput, describe_metrics
from selfpatch.training.student_teacher import StudentTeacher

Evaluate = Callable[[Branch, int], Mapping[str, float]]
"""Measures the teacher after a number of steps."""
SCHEDULED = ("epoch", "lr", "weight_decay", "teacher_momentum", "teacher_temp")
"""Hyperparameters that are recorded."""


class Monitor:
    """Records and shows losses, meters and metrics; only the main process writes, but all of them call it.

    Args:
        run: the run directory.
        student_teacher: the network.
        schedule: hyperparameters by step.
        logging: where records go, besides metrics.jsonl.
        batch_size: number of images in a step.
        first: number of steps taken before.
        evaluate: measures the teacher; None for no metrics, and on processes other than the main one.
        evaluated_at: numbers of steps after which it does.
        pretrained: whether the initial weights are trained, so that metrics that fall below them are reported.
    """

    def __init__(
        self,
        run: RunDirectory,
        student_teacher: StudentTeacher,
        schedule: Schedule,
        logging: LoggingConfig,
        *,
        batch_size: int,
        first: int,
        evaluate: Evaluate | None,
        evaluated_at: Collection[int],
        pretrained: bool,
    ) -> None:
        self._run, self._student_teacher, self._batch_size = run, student_teacher, batch_size
        self._evaluate, self._evaluated_at, self._pretrained = evaluate, evaluated_at, pretrained
        self._losses = ("loss", *student_teacher.loss_weights)
        self._log = MetricsLogger(run, logging)
        if distributed.is_main_process():
            self._log.rewind(first + 1 if first else 0)  # a record of step s is made after s steps
        total = schedule.total_steps
        self._bar = ProgressBar(total, batch_size, enabled=distributed.is_main_process())
        self._detectors = (
            CollapseDetector(first_step=min(total // 10, schedule.steps_per_epoch)),
            UniformLossDetector(first_step=total // 2),
        )
        self._throughput = Throughput()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress bar inside, and close the log at the end."""
        with self._bar, contextlib.closing(self._log):
            yield

    def count_step(self) -> None:
        """Count the images of a step."""
        self._throughput.add(self._batch_size)

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """Leave out of the throughput what happens inside."""
        return self._throughput.pause()

    def record(self, hp: Hyperparameters, values: Mapping[str, Tensor]) -> None:
        """Record the means over the processes of losses and meters of a step, show them, and warn of collapse."""
        speed = self._throughput.images_per_second
        means = distributed.all_reduce_mean(torch.stack([value.float() for value in values.values()])).tolist()
        numbers = dict(zip(values, means, strict=True))
        if distributed.is_main_process():
            of_losses = {name: value for name, value in numbers.items() if name.removeprefix(UNIFORM) in self._losses}
            meters = {name: value for name, value in numbers.items() if name not in of_losses}
            scheduled = {name: getattr(hp, name) for name in SCHEDULED}
            speeds = {"images_per_second": speed}
            self._log.record(hp.step + 1, schedule=scheduled, loss=of_losses, meters=meters, speed=speeds)
        # A single loss is the total.
        shown = {name: numbers[name] for name in (self._losses if len(self._losses) > 2 else ("loss",))}
        self._bar.update(hp.step + 1, epoch=hp.epoch + 1, images_per_second=speed, losses=shown, lr=hp.lr)
        self._bar.warn(*(detector.check(hp.step + 1, numbers) for detector in self._detectors))

    def say_where_it_continues(self, first: int, total: int) -> None:
        """Say after which step a resumed run continues, or that all of its steps are done."""
        if first:
            self._bar.say(f"all {total} steps are done" if first == total else f"continues after step {first}/{total}")

    def evaluate_at_start(self, first: int) -> None:
        """Measure the teacher of a run that is new, or was stopped before the evaluation after `first` steps."""
        (missing,) = distributed.any_rank(distributed.is_main_process() and not self._log.has_evaluation(first))
        if missing and first in self._evaluated_at:
            self._measure(first)

    def evaluate_if_due(self, done: int) -> None:
        """Measure the teacher after `done` steps if it is due, and show the metrics next to those at the start."""
        if done not in self._evaluated_at or (metrics := self._measure(done)) is None:
            return
        first = next((row for row in read_numbers(self._run.path) if row["step"] == 0), {})
        at_start = {name: value for name, value in first.items() if value is not None}  # features may not be finite
        self._bar.say(describe_metrics(metrics, at_start, "at first" if self._pretrained else "untrained", done))
        self._bar.warn(regression_warning(metrics, at_start) if self._pretrained else None)

    def _measure(self, done: int) -> Mapping[str, float] | None:
        """Measure the teacher in evaluation mode, in which batch norms use running statistics, and record the metrics.

        All processes gather the teacher; those that do not measure return None.
        """
        teacher = whole_teacher(self._student_teacher)
        if self._evaluate is None or teacher is None:
            return None
        teacher.eval()
        metrics = self._evaluate(teacher, done)
        teacher.train()
        sheet = sheet_of(self._run.pictures, done)
        self._log.record(done, eval=metrics, pictures={"pictures/patch_features": sheet} if sheet.is_file() else {})
        return metrics
