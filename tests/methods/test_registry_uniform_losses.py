"""What objectives say of their losses under uniform predictions, against losses of predictions that are uniform."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from selfpatch.methods.registry import METHODS, OBJECTIVES
from tests.helpers.tiny import COMPONENTS, hyperparameters, tiny_student_teacher, tiny_views

WITHOUT = ("paka", "selfpatch_pairs", "sere_pairs", "neco", "koleo", "gram", "retain", "distill")
"""Objectives whose losses have no such value by default: of kernels, orders and distances, and divergences that depend
on the teacher."""
COMBINATIONS = [(name, "none") for name in METHODS]
COMBINATIONS += [("dino", name) for name in OBJECTIVES if name not in WITHOUT]
BOTTLENECK = {"hidden_dim": 16, "bottleneck_dim": 8, "num_prototypes": 4096}
"""Settings of agreements other than with prototypes, which refuse a number of them other than the default."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ibot, separate prototypes": {
        "method": "ibot",
        "ibot": COMPONENTS["ibot"] | {"prototypes": "separate", "num_patch_prototypes": 7},
    },
    "ibot, on all patches": {"method": "ibot", "ibot": COMPONENTS["ibot"] | {"patch_loss_on": "all"}},
    "selfpatch, contrast": {"selfpatch": {"agreement": "contrast", "queue_size": 20, **BOTTLENECK}},
    "sere, one relation": {
        "objective": "sere",
        "sere": {"relations": "spatial", "overlap_size": 3, "local_overlap_size": 2},
    },
    "sere, no local crops": {"objective": "sere", "crops": {"num_local": 0}},
}
CASES = {f"{method} + {objective}": {"method": method, "objective": objective} for method, objective in COMBINATIONS}


@pytest.mark.parametrize("settings", [*CASES.values(), *SETTINGS.values()], ids=[*CASES, *SETTINGS])
def test_the_loss_of_uniform_predictions_is_as_announced(settings: dict[str, Any]) -> None:
    student_teacher = tiny_student_teacher(**{"objective": "selfpatch"} | settings)
    with torch.no_grad():
        for part in (student_teacher.student.heads, student_teacher.objectives):
            for name, parameter in part.named_parameters():
                if not name.endswith("weight_v"):  # the direction of a prototype, whose length is 0 then
                    parameter.zero_()
    views = tiny_views(5)
    assert views.masks is not None
    views.masks[1, 2:] = False  # views without mask count 0 in iBOT's loss of patches
    if settings.get("crops"):
        views = replace(views, local_crops=None, boxes=views.boxes[:2])
    found = student_teacher(views, hyperparameters())
    announced = student_teacher.uniform_losses([views])
    assert {f"uniform_{name}" for name in student_teacher.loss_weights} == set(announced)
    for name in student_teacher.loss_weights:
        torch.testing.assert_close(found[name], announced[f"uniform_{name}"], rtol=1e-5, atol=0.0)
        assert found[name] > 0.1


@pytest.mark.parametrize("objective", WITHOUT)
def test_other_losses_have_no_value_of_uniform_predictions(objective: str) -> None:
    student_teacher = tiny_student_teacher(objective=objective)
    assert set(student_teacher.uniform_losses([tiny_views(2)])) == {"uniform_image"}
    assert tiny_student_teacher(method="none", objective=objective).uniform_losses([tiny_views(2)]) == {}


def test_a_cosine_has_no_value_of_uniform_predictions() -> None:
    student_teacher = tiny_student_teacher(selfpatch={"agreement": "cosine", **BOTTLENECK})
    assert set(student_teacher.uniform_losses([tiny_views(2)])) == {"uniform_image"}


def test_micro_batches_are_averaged() -> None:
    student_teacher = tiny_student_teacher(method="ibot", objective="none")
    masked, unmasked = tiny_views(2), tiny_views(2)
    assert masked.masks is not None
    assert unmasked.masks is not None
    masked.masks[:] = True
    unmasked.masks[:] = False
    value = student_teacher.uniform_losses([masked, masked, unmasked])["uniform_masked_patch"]
    assert value.item() == pytest.approx(2 / 3 * math.log(24))
