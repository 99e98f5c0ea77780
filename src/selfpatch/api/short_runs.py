"""Schedules of a run that is much shorter than its recipe: warm-ups and frozen epochs take the same share of both."""

from collections.abc import Container
from dataclasses import replace
from typing import NamedTuple

from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.core.text import counted

LONGEST_SHARE = 0.5
"""Share of the training from which on a warm-up is too long: the rate falls in less time than it rises."""
USUAL_SHARE = 0.1
"""Share of the training that a note advises."""


class _Phase(NamedTuple):
    """Phase of some epochs at the start of a training, in words."""

    noun: str
    verb: str


PHASES = {
    "warmup_epochs": _Phase("warm-up of the learning rate", "the learning rate rises"),
    "warmup_teacher_temp_epochs": _Phase("warm-up of the teacher's temperature", "the teacher's temperature rises"),
    "freeze_last_layer_epochs": _Phase("frozen last layer", "the last layer is frozen"),
    "freeze_backbone_epochs": _Phase("frozen backbone", "the backbone is frozen"),
}
"""Settings of the optimizer that are lengths in epochs."""


def fit_schedules(config: RunConfig, named: Container[str] = ()) -> tuple[RunConfig, list[str]]:
    """Return the settings with phases that fit their epochs, and lines that say what was shortened or is too long.

    A phase that is longer than half of the training gets its share in the recipe, or in the defaults without one. A
    length that was asked for stays, with a note: one that is `named`, or another than the recipe's.
    """
    too_long = [name for name in PHASES if _is_too_long(config, name)]
    if config.epochs is None or not too_long:
        return config, []
    usual = usual_settings(config.recipe)
    shortened, lines, changes = {}, [], []
    for name in too_long:
        (noun, verb), length = PHASES[name], getattr(config.optimizer, name)
        planned, its_epochs = (None, None) if usual is None else (getattr(usual.optimizer, name), usual.epochs)
        of_recipe = name not in named and length == planned
        if of_recipe and its_epochs is not None and length <= LONGEST_SHARE * its_epochs:
            shortened[name] = length * config.epochs / its_epochs
            changes.append(f"{noun} from {length:g} to {shortened[name]:.2g}")
        else:
            option = f"--optimizer.{name.replace('_', '-')} {USUAL_SHARE * config.epochs:.2g}"
            lines.append(f"note: {verb} for {length:g} of {_epochs(config)}; shorten this, e.g. with {option}")
    if usual is not None and changes:
        made_for = counted(usual.epochs or 0, "epoch", "g")
        lines.insert(0, f"note: shortened for {_epochs(config)} in place of {made_for}: {', '.join(changes)}")
    return replace(config, optimizer=replace(config.optimizer, **shortened)), lines


def usual_settings(recipe: str | None) -> RunConfig | None:
    """Return the settings of a recipe as it is, or the defaults without one; None if its file is gone."""
    try:
        return RunConfig() if recipe is None else load_recipe(recipe)
    except ValueError:  # settings of an earlier run name it; they hold all of its values
        return None


def _epochs(config: RunConfig) -> str:
    return counted(config.epochs or 0, "epoch", ".3g")


def _is_too_long(config: RunConfig, name: str) -> bool:
    length = getattr(config.optimizer, name)
    return config.epochs is not None and length > LONGEST_SHARE * config.epochs and _has_effect(config, name)


def _has_effect(config: RunConfig, name: str) -> bool:
    """Return whether a phase changes anything; temperatures of a warm-up may be equal."""
    c = config.optimizer
    if name != "warmup_teacher_temp_epochs":
        return True
    last = c.teacher_temp if c.teacher_patch_temp is None else c.teacher_patch_temp
    first = c.warmup_teacher_temp if c.warmup_teacher_patch_temp is None else c.warmup_teacher_patch_temp
    return (c.warmup_teacher_temp, first) != (c.teacher_temp, last)
