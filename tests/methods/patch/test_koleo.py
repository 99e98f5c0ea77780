"""KoLeo on the student's image tokens of the global crops."""

from __future__ import annotations

import torch

from selfpatch.losses import KoLeoLoss
from tests.helpers.tiny import hyperparameters, tiny_student_teacher, tiny_views


def test_the_loss_is_that_of_the_students_global_image_tokens() -> None:
    student_teacher = tiny_student_teacher(method="dino", objective="koleo")
    views = tiny_views(4)
    found = student_teacher(views, hyperparameters())
    crops = student_teacher._needed_crops(views)["global_crops"]
    tokens = student_teacher.student.backbone(crops.flatten(0, 1)).cls
    assert tokens is not None
    torch.testing.assert_close(found["koleo"], KoLeoLoss()(tokens.unflatten(0, (2, 4))))
    torch.testing.assert_close(found["loss"], found["image"] + 0.1 * found["koleo"])
