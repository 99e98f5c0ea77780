"""Detection of collapse and regression of the features during training."""

import math
from collections.abc import Mapping

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
