"""Replay of published commands' schedules at ImageNet's size, through the recipes that claim to be these commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.training.factory import make_schedule
from selfpatch.training.optim import Schedule
from tests.parity.check import Check

IMAGES = 1_281_167
"""Number of training images of ImageNet-1k."""
TOLERANCE = 1e-9

README_CROPS = {"global_scale": [0.4, 1.0], "local_scale": [0.05, 0.4]}
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "selfpatch vit_small, released command (300 epochs)": ("selfpatch-dino-vits16", {"epochs": 300}),
    "selfpatch vit_small, paper (200 epochs)": ("selfpatch-dino-vits16", {}),
    "dino vit_small, README vanilla command (batch 512, 100 epochs)": (
        "dino-vits16",
        {"epochs": 100, "batch_size": 512, "crops": README_CROPS},
    ),
    "dino vit_small at batch 1024, 200 epochs": ("dino-vits16", {}),
    "dino vit_small, README boosted command (16 x 64, 300 epochs, norm_last_layer false)": (
        "dino-vits16",
        {
            "epochs": 300,
            "crops": README_CROPS,
            "optimizer": {"teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30},
            "dino": {"norm_last_layer": False},
        },
    ),
    "ibot vit_small, README command (800 epochs, 16 x 64)": ("ibot-vits16", {}),
    "sere vit_small, README command": ("sere-ibot-vits16", {}),
    "sere vit_base, README command": ("sere-ibot-vitb16", {}),
    "moby_swin_tiny": ("moby-swin-tiny", {}),
    "moby_deit_small": ("moby-vits16", {}),
    "moco-v3 vit_small, batch 4096 (CONFIG.md, 32 GPUs)": ("moco-v3-vits16", {}),
    "moco-v3 vit_small, batch 1024 (CONFIG.md, one node)": ("moco-v3-vits16", {"batch_size": 1024}),
}
"""Published command -> our recipe and the options that its header names for this command."""

ARGUMENTS: dict[str, Callable[[RunConfig, Schedule], float]] = {
    "lr": lambda c, s: c.optimizer.base_lr,
    "base_lr": lambda c, s: s.peak_lr * 512 / c.batch_size,  # MoBY
    "peak_lr": lambda c, s: s.peak_lr,
    "min_lr": lambda c, s: c.optimizer.min_lr,
    "warmup_lr": lambda c, s: c.optimizer.warmup_start_lr,
    "warmup_epochs": lambda c, s: c.optimizer.warmup_epochs,
    "weight_decay": lambda c, s: c.optimizer.weight_decay,
    "weight_decay_end": lambda c, s: c.optimizer.weight_decay_end,
    "momentum_teacher": lambda c, s: c.optimizer.teacher_momentum,
    "moco_m": lambda c, s: c.optimizer.teacher_momentum,
    "moco_m_cos": lambda c, s: c.optimizer.teacher_momentum_end == 1.0,
    "teacher_temp": lambda c, s: c.optimizer.teacher_temp,
    "warmup_teacher_temp": lambda c, s: c.optimizer.warmup_teacher_temp,
    "teacher_patch_temp": lambda c, s: s(s.total_steps - 1).teacher_patch_temp,
    "warmup_teacher_patch_temp": lambda c, s: s(0).teacher_patch_temp,
    "warmup_teacher_temp_epochs": lambda c, s: c.optimizer.warmup_teacher_temp_epochs,
    "clip_grad": lambda c, s: c.optimizer.clip,
    "freeze_last_layer": lambda c, s: c.optimizer.freeze_last_layer_epochs,
    "epochs": lambda c, s: c.epochs,
    "batch_size": lambda c, s: c.batch_size,
    "steps_per_epoch": lambda c, s: s.steps_per_epoch,
    "crop_min": lambda c, s: c.crops.global_scale[0],
}
"""Arguments of published commands -> our values."""


def replay_schedules(bundle: Path) -> Iterator[Check]:
    """Compare arguments, values at chosen steps and sums over all steps of each command in a `schedules.json`."""
    for command, expected in json.loads((bundle / "schedules.json").read_text()).items():
        if command not in COMMANDS:
            raise ValueError(f"no recipe is known for the command {command!r}; add it to tests/parity/schedules.py")
        recipe, options = COMMANDS[command]
        config = load_recipe(recipe).override(options)
        schedule = make_schedule(config, (IMAGES - config.loader.held_out) // config.batch_size)
        name = f"{recipe} {_described(options)}".strip()
        yield from _arguments(name, config, schedule, expected)
        yield from _steps(name, schedule, expected["steps"])
        if "sums" in expected:
            yield from _sums(name, schedule, expected["sums"])


def _described(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items() if not isinstance(value, dict))


def _arguments(name: str, config: RunConfig, schedule: Schedule, expected: Mapping[str, Any]) -> Iterator[Check]:
    if unknown := expected["arguments"].keys() - ARGUMENTS.keys():
        raise ValueError(
            f"{name}: the arguments {sorted(unknown)} are not known; add them to tests/parity/schedules.py"
        )
    for argument, value in expected["arguments"].items():
        yield _check(f"{name}: {argument}", [(ARGUMENTS[argument](config, schedule), value)])
    if "total_steps" in expected:
        yield _check(f"{name}: total steps", [(schedule.total_steps, expected["total_steps"])])


def _steps(name: str, schedule: Schedule, rows: list[dict[str, float]]) -> Iterator[Check]:
    """Compare every scheduled value; the momentum that moves a key encoder before step t is that after step t - 1."""
    recorded = {"lr_used": "lr"}
    for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
        pairs = []
        for row in rows:
            if key == "key_momentum_used":
                assert schedule.config.teacher_moves == "before_step"
                got = schedule(int(row["step"]) - 1).teacher_momentum
            else:
                got = getattr(schedule(int(row["step"])), recorded.get(key, key))
            pairs.append((got, row[key]))
        yield _check(f"{name}: {key} at {len(rows)} steps", pairs)


def _sums(name: str, schedule: Schedule, expected: Mapping[str, float]) -> Iterator[Check]:
    values = [schedule(step) for step in range(schedule.total_steps)]
    temps = [hp.teacher_temp for hp in values[:: schedule.steps_per_epoch]]
    for key, total in expected.items():
        summed = temps if key == "teacher_temp_over_epochs" else [getattr(hp, key) for hp in values]
        yield _check(f"{name}: sum of {key}", [(sum(summed), total)])


def _check(name: str, pairs: Iterable[tuple[float, float]]) -> Check:
    """Compare numbers by the largest relative error; where 0 is expected, the absolute one counts."""
    return Check(name, max(abs(got - value) / (abs(value) or 1.0) for got, value in pairs), TOLERANCE)
