"""Distillation from the anchor: which loss sees which tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from selfpatch.methods.patch.distill import Distill, DistillConfig
from tests.helpers.encodings import commit, grid_outputs, views_of
from tests.helpers.tiny import hyperparameters

ALL = ("patch_features", "image_features", "patch_similarities", "image_similarities")


@pytest.mark.parametrize("standardise", [False, True])
def test_each_loss_is_that_of_its_tokens(standardise: bool) -> None:
    objective = Distill(5, 7, DistillConfig(losses=ALL, standardise=standardise, queue_size=64))
    assert objective.loss_weights == dict.fromkeys(ALL, 1.0)
    student, anchor = grid_outputs(3, 5), grid_outputs(4, 7, seed=1)
    objective(student, anchor, views_of(2), hyperparameters())
    commit(objective)
    found = objective(student, anchor, views_of(2), hyperparameters())
    maps = [out.tokens_per_resolution[0].patches for out in (student, anchor)]
    images = [out.image.transpose(0, 1).flatten(0, 1) for out in (student, anchor)]
    target_map, target = maps[1], images[1]
    if standardise:  # by the first step, which had the same tokens
        target_map, target = (
            ((x - rows.mean(0)) / rows.std(0, correction=0)).view_as(x)
            for x, rows in ((x, x.flatten(0, -2)) for x in (target_map, target))
        )
    x = objective.losses["image_features"].projection(images[0])
    distance = 0.9 * (1 - torch.cosine_similarity(x, target)).mean() + 0.1 * F.smooth_l1_loss(x, target)
    torch.testing.assert_close(found["image_features"], distance)
    torch.testing.assert_close(found["patch_features"], objective.losses["patch_features"](maps[0], target_map))
    torch.testing.assert_close(found["patch_similarities"], objective.losses["patch_similarities"](*maps))
    queue = objective.losses["image_similarities"].queue
    assert int(queue.num_filled) == 4
    commit(objective)
    assert int(queue.num_filled) == 8
    torch.testing.assert_close(queue.features[:4], F.normalize(images[1], dim=1))


def test_only_the_chosen_losses_are_computed() -> None:
    objective = Distill(5, 7, DistillConfig(losses=("patch_similarities",)))
    found = objective(grid_outputs(3, 5), grid_outputs(4, 7), views_of(2), hyperparameters())
    assert found.keys() == objective.loss_weights.keys() == {"patch_similarities"}
    with pytest.raises(ValueError, match=r"losses is .* use 1 or more values"):
        DistillConfig(losses=())
