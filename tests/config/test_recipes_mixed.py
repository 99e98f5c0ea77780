"""Any recipe with another model, method or objective: it builds, or one sentence says what to change."""

from __future__ import annotations

import itertools

import pytest
import torch

from selfpatch.config.recipes import load_recipe, recipe_names
from selfpatch.config.run import FROM_INIT
from selfpatch.training.factory import make_student_teacher

FROM_NOTHING = [name for name in recipe_names() if load_recipe(name).model != FROM_INIT]


OTHERS = itertools.cycle(
    [("dino", "swin_tiny"), ("moco_v3", "vit_tiny"), ("densecl", "resnet50"), ("swav", "vit_base")]
)


@pytest.mark.parametrize(("name", "other"), list(zip(FROM_NOTHING, OTHERS, strict=False)))
def test_options_replace_parts_of_a_recipe(name: str, other: tuple[str, str]) -> None:
    (method, model), objective = other, "selfpatch+sere"
    config = load_recipe(name).override({"method": method, "objective": objective, "model": model})
    local_size = 98 if config.patch_size == 14 else 96
    config = config.override({"crops": {"global_size": 224, "local_size": local_size}})  # several tokens of 32 pixels
    if method == "densecl":
        config = config.override({"batch_size": 64, "densecl": {"queue_size": 128}})
    with torch.device("meta"):
        student_teacher, _ = make_student_teacher(config)
    assert list(student_teacher.objectives) == [method, *config.objectives]
