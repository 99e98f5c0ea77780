"""Which numbers the settings of a run may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import attrgetter

RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "it must be above 0": (lambda x: x > 0, (
        "epochs", "batch_size", "accumulate", "channels", "patch_size", "backbone.embed_dim", "backbone.depth",
        "backbone.num_heads", "backbone.depths", "crops.global_size", "watch.log_every", "checkpoint.keep",
        "checkpoint.max_nonfinite",
    )),
    "a temperature must be above 0": (lambda x: x > 0, (
        "optimizer.teacher_temp", "optimizer.warmup_teacher_temp", "optimizer.teacher_patch_temp",
        "optimizer.warmup_teacher_patch_temp",
    )),
    "it must be 0 or above": (lambda x: x >= 0, (
        "seed", "crops.brightness", "crops.contrast", "crops.saturation", "optimizer.base_lr", "optimizer.min_lr",
        "optimizer.warmup_epochs", "optimizer.weight_decay", "optimizer.weight_decay_end", "optimizer.clip",
        "optimizer.freeze_last_layer_epochs", "optimizer.freeze_backbone_epochs",
        "optimizer.warmup_teacher_temp_epochs", "loader.workers",
        "loader.max_pixels", "loader.held_out", "watch.evaluate_every", "watch.knn_images", "watch.picture_images",
        "backbone.frozen_blocks", "checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep_every_epochs",
    )),
    "use 0 for no local crops": (lambda x: x >= 0, ("crops.num_local",)),
    "it must lie between 0 and 1": (lambda x: 0 <= x <= 1, (
        "crops.flip", "crops.jitter", "crops.grey", "crops.blur", "crops.solarize", "loader.max_bad",
        "backbone.drop_path", "optimizer.teacher_momentum", "optimizer.teacher_momentum_end", "optimizer.momentum",
        "optimizer.layer_decay", "masks.ratio", "masks.share_unmasked",
    )),
}  # fmt: skip
"""Of each rule, in the words of the complaint: what it allows, and the settings it is for. None is always allowed."""


def check_ranges(settings: object) -> None:
    """Holds the attributes of `settings` against `RANGES`.

    Raises:
        ValueError: a number, or one of several, is out of its range or not finite.
    """
    for complaint, (allows, names) in RANGES.items():
        for setting in names:
            for name, number in _numbers(setting, attrgetter(setting)(settings)):
                if not (math.isfinite(number) and allows(number)):
                    raise ValueError(f"{name} is {number}; {complaint}")


def _numbers(name: str, value: float | tuple[float, ...] | None) -> Iterator[tuple[str, float]]:
    """The numbers of a setting and what to call each: `flip`, or `blur[0]`, `blur[1]`, ..."""
    if isinstance(value, tuple):
        yield from ((f"{name}[{i}]", number) for i, number in enumerate(value))
    elif value is not None:
        yield name, value
