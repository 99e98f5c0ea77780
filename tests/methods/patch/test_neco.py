"""NeCo on the two sides of a step: `NeCoLoss` of head outputs, and draws that depend on seed and step alone."""

from __future__ import annotations

import copy

import torch

from selfpatch.core.seeds import step_seed
from selfpatch.losses import NeCoLoss
from selfpatch.ops.contrast import l2_normalize
from tests.helpers.tiny import hyperparameters, tiny_student_teacher, tiny_views


def test_the_loss_is_that_of_unit_embeddings_after_the_final_norm() -> None:
    student_teacher = tiny_student_teacher(method="none", objective="neco", seed=3)
    objective, views = student_teacher.objectives["neco"], tiny_views(4)
    criterion = copy.deepcopy(objective.loss)
    assert isinstance(criterion, NeCoLoss)
    crops = student_teacher._needed_crops(views)
    both = [crops["global_crops"], crops["local_crops"]]
    embeddings = []
    for side, resolutions in ((student_teacher.student, both), (student_teacher.teacher, both[:1])):
        for x in resolutions:
            patches = side.backbone(x.flatten(0, 1)).patches
            embeddings.append(l2_normalize(side.heads["neco"](patches)).unflatten(0, (-1, 4)))
    expected = criterion(*embeddings, views.boxes, torch.Generator().manual_seed(step_seed(3, 5)))
    torch.manual_seed(1)
    found = student_teacher(views, hyperparameters(step=5))
    torch.testing.assert_close(found["order"], expected)
    student_teacher.discard_step()
    other = student_teacher(views, hyperparameters(step=6))
    assert not torch.equal(other["order"], found["order"]), "another step draws other references"
    student_teacher.discard_step()
    objective.seed = 4
    other = student_teacher(views, hyperparameters(step=5))
    assert not torch.equal(other["order"], found["order"]), "and so does another run"


def test_local_crops_may_be_missing() -> None:
    student_teacher = tiny_student_teacher(method="none", objective="neco", crops={"num_local": 0})
    views = tiny_views(4)
    views = type(views)(views.global_crops, None, views.boxes[:2], views.samples)
    assert student_teacher(views, hyperparameters())["order"] > 0
