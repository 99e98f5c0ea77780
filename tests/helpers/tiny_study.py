"""A study of seconds on made-up data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.training.online_eval import teacher_encoder
from tests.helpers.command_line import write_davis, write_photos
from tests.helpers.tiny import tiny_student_teacher

PLAN: dict[str, Any] = {
    "title": "tiny",
    "question": "Does it work?",
    "pretrain": "photos",
    "seeds": [0, 1],
    "settings": {
        "recipe": "small-cpu",
        "epochs": 4,
        "patch_size": 4,
        "batch_size": 4,
        "precision": "fp32",
        "backbone": {"embed_dim": 24, "depth": 2, "num_heads": 3},
        "crops": {"global_size": 32, "local_size": 16},
        "dino": {"num_prototypes": 64, "hidden_dim": 32, "bottleneck_dim": 16},
        "selfpatch": {"num_prototypes": 32, "hidden_dim": 32, "bottleneck_dim": 16},
        "loader": {"held_out": 2},
        "watch": {"evaluate_every": 0, "picture_images": 0, "log_every": 1},
        "checkpoint": {"every_steps": 3, "keep_every_epochs": 2},
        "optimizer": {"warmup_epochs": 1},
    },
    "arms": {"DINO": {"objective": "none"}, "DINO + SelfPatch": {"objective": "selfpatch"}},
    "baselines": ["untrained", "baseline:mean-colour:4"],
    "evaluations": [{"davis": {"data": "davis", "resolution": 48}, "columns": {"J&F-Mean": "J&F", "J-Mean": "J"}}],
    "over_time": [
        {"davis": {"data": "davis", "resolution": 48, "sequences": ["first"]}, "columns": {"J&F-Mean": "first J&F"}}
    ],
    "pictures": "photos",
}


FROM_WEIGHTS: dict[str, Any] = {
    "baselines": ["as is"],
    "settings": {
        **PLAN["settings"],
        "init": "weights",
        "model": "init",
        "patch_size": None,
        "backbone": {"keep_class_token": True},
    },
}
"""Changes that let the arms start from weights."""


def write_weights(folder: Path, **settings: Any) -> str:
    """Write weights.safetensors, a tiny backbone; `settings` as those of a run."""
    encoder = teacher_encoder(tiny_student_teacher(objective="none", **settings).teacher)
    return str(write_safetensors(folder / "weights.safetensors", *export_state(encoder)))


def needs_weights(study: Path) -> bool:
    """Return whether the arms of a study start from, or learn from, weights that the command names."""
    spec = yaml.safe_load(study.read_text())
    extends = spec.get("extends")
    from_option = "weights" in {spec.get("settings", {}).get(name) for name in ("init", "teacher")}
    return from_option or (extends is not None and needs_weights(study.parent / extends))


def write_study(folder: Path, **changes: Any) -> Path:
    """tiny.yaml, with `changes` in place of what PLAN says; None: without it. The data lie beside it."""
    if not (folder / "photos").is_dir():
        write_photos(folder / "photos", 22)
        write_davis(folder / "davis")
    plan = {key: value for key, value in {**PLAN, **changes}.items() if value is not None}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path
