"""Leopart on the two sides of a step, and its foreground."""

from __future__ import annotations

import copy

import pytest
import torch

from selfpatch.losses import LeopartLoss
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.foreground import attended_patches
from tests.helpers.tiny import hyperparameters, tiny_student_teacher, tiny_views


def test_the_foreground_is_what_the_teachers_class_token_attends_to() -> None:
    student_teacher = tiny_student_teacher(method="none", objective="leopart")
    views, both = tiny_views(4), []
    criterion = copy.deepcopy(student_teacher.objectives["leopart"].loss)
    assert isinstance(criterion, LeopartLoss)
    crops = student_teacher._needed_crops(views)
    teacher = student_teacher.teacher.backbone
    student_side, teacher_side = student_teacher.student, student_teacher.teacher
    for side, name in ((student_side, "global_crops"), (student_side, "local_crops"), (teacher_side, "global_crops")):
        scores = side.heads["leopart"](side.backbone(crops[name].flatten(0, 1)).patches)
        both.append(Scores(scores.bottleneck.unflatten(0, (2, 4)), scores.prototypes))
    attention = teacher.class_attention(crops["global_crops"].flatten(0, 1))
    foreground = attended_patches(attention, 0.6).unflatten(0, (2, 4))
    expected = criterion(*both, views.boxes, foreground)
    found = student_teacher(views, hyperparameters())
    torch.testing.assert_close(found["clusters"], expected)
    torch.testing.assert_close(teacher(crops["global_crops"][0]).class_attention, attention[:4])
    assert student_teacher.student.backbone(crops["global_crops"][0]).class_attention is None


@pytest.mark.parametrize("settings", [{"model": "swin_tiny"}, {"objective": "leopart+selfpatch"}], ids=str)
def test_without_a_class_token_all_patches_have_to_be_asked_for(settings: dict[str, str]) -> None:
    given = {"method": "none", "objective": "leopart"} | settings
    with pytest.raises(ValueError, match=r"has none; use a ViT with a CLS token, or .* --leopart\.foreground false"):
        tiny_student_teacher(**given, leopart={"foreground": True})
    tiny_student_teacher(**given, leopart={"foreground": False})
