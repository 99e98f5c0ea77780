"""Detection of collapse, of losses that teach nothing, and of features that get worse during training."""

import math
from collections.abc import Mapping

from selfpatch.core.text import counted

WARNINGS = {
    "uniform": (
        "The teacher has collapsed to uniform distributions (entropy {entropy:.2f} of {max_entropy:.2f} nats) and "
        "teaches nothing: sharpen it with a lower optimizer.teacher_temp, or lower optimizer.base_lr."
    ),
    "one prototype": (
        "The teacher gives every image the same prototype (entropy of the mean distribution {mean_entropy:.3f} nats): "
        "soften it with a higher optimizer.teacher_temp, or raise optimizer.freeze_last_layer_epochs."
    ),
    "rank": (
        "The features have collapsed to one direction (effective rank {effective_rank:.2f}): lower optimizer.base_lr "
        "or raise optimizer.warmup_epochs, and check that the images differ."
    ),
}
"""Warning of each kind of collapse, with the meters that show it."""
UNIFORM = "uniform_"
"""Prefix of a loss's name for its value under uniform predictions."""
METERS = ("entropy", "mean_entropy", "max_entropy", "effective_rank")


class CollapseDetector:
    """Warns once about each kind of collapse in the meters of `ops.collapse`, with advice.

    Args:
        first_step: first step whose meters count; an untrained network looks collapsed.
        patience: number of logs in a row that must show a collapse before the warning.
    """

    def __init__(self, first_step: int, patience: int = 3) -> None:
        self._first_step = first_step
        self._patience = patience
        self._in_a_row = dict.fromkeys(WARNINGS, 0)
        self._warned: set[str] = set()

    def check(self, step: int, meters: Mapping[str, float]) -> str | None:
        """Return a warning or None; called at each log, after `step` steps.

        `meters` holds `entropy`, `mean_entropy` and `max_entropy` in nats and `effective_rank`, or some of them.
        """
        if step < self._first_step:
            return None
        # A meter that is missing is NaN, and comparisons with NaN are False.
        values = {name: meters.get(name, math.nan) for name in METERS}
        collapsed = {
            "uniform": values["entropy"] > 0.99 * values["max_entropy"],
            "one prototype": values["mean_entropy"] < 0.1,
            "rank": values["effective_rank"] < 1.5,
        }
        due = []
        for kind, shown in collapsed.items():
            self._in_a_row[kind] = self._in_a_row[kind] + 1 if shown else 0
            if self._in_a_row[kind] >= self._patience and kind not in self._warned:
                due.append(kind)
        self._warned.update(due)
        return " ".join(WARNINGS[kind].format(**values) for kind in due) or None


def losses_at_uniform(meters: Mapping[str, float | None], tolerance: float = 0.01) -> dict[str, tuple[float, float]]:
    """Return each loss that is within the relative `tolerance` of its value for uniform predictions, and that value.

    `meters` holds losses in nats by name, and those values by name with the prefix `UNIFORM`.
    """
    found = {}
    for name, value in meters.items():
        loss = meters.get(name.removeprefix(UNIFORM))
        if name.startswith(UNIFORM) and loss is not None and value and abs(loss - value) <= tolerance * value:
            found[name.removeprefix(UNIFORM)] = (loss, value)
    return found


def describe_uniform(losses: Mapping[str, tuple[float, float]]) -> str:
    """Return what `losses_at_uniform` found in words."""
    return ", ".join(f"{name} {loss:.2f} of {value:.2f} nats" for name, (loss, value) in losses.items())


class UniformLossDetector:
    """Warns once about losses that still have the value of uniform predictions.

    Args:
        first_step: first step whose losses count, a sensible part into the training.
        patience: number of logs in a row that must show it before the warning.
    """

    def __init__(self, first_step: int, patience: int = 2) -> None:
        self._first_step, self._patience = first_step, patience
        self._in_a_row: dict[str, int] = {}
        self._warned = False

    def check(self, step: int, meters: Mapping[str, float]) -> str | None:
        """Return a warning or None; called at each log, after `step` steps, with meters as for `losses_at_uniform`."""
        if step < self._first_step or self._warned:
            return None
        found = losses_at_uniform(meters)
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name in found}
        due = {name: found[name] for name, count in self._in_a_row.items() if count >= self._patience}
        if not due:
            return None
        self._warned = True
        return (
            f"Predictions are still uniform after {counted(step, 'step')}, so that the loss teaches nothing: "
            f"{describe_uniform(due)}. Raise optimizer.head_lr_scale (heads learn at the backbone's rate unless it is "
            "above 1) or optimizer.base_lr, train for more epochs, or use fewer prototypes."
        )


def regression_warning(
    metrics: Mapping[str, float], at_start: Mapping[str, float], tolerance: float = 0.02
) -> str | None:
    """Return a warning that names the metrics that fell by more than `tolerance` since the start, or None.

    `at_start` holds the metrics of the initial weights; higher is better.
    """
    fallen = [
        f"{name} from {before:.3f} to {metrics[name]:.3f}"
        for name, before in at_start.items()
        if name in metrics and metrics[name] < before - tolerance
    ]
    advice = (
        "Lower optimizer.base_lr, raise backbone.frozen_blocks or optimizer.freeze_backbone_epochs, or lower the "
        "weight of the loss that fights them."
    )
    return f"The objective fights the initial features: {', '.join(fallen)}. {advice}" if fallen else None
