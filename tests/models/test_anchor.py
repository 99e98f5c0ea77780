"""The frozen anchor: its mode, its normalisation, and the steps at which the teacher replaces it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfpatch.models.anchor import Anchor
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.branch import Branch
from selfpatch.ops.images import normalise
from tests.helpers.released_forms import random_backbone
from tests.helpers.tiny import tiny_views

VIT = ViTConfig(embed_dim=16, depth=1, num_heads=2, patch_size=8, grid=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def branch(seed: int = 0) -> Branch:
    return Branch(random_backbone(VIT, seed), None, {})


def test_it_stays_frozen_and_in_evaluation_mode() -> None:
    anchor = Anchor(branch())
    anchor.train()
    assert not any(module.training for module in anchor.modules())
    assert not any(parameter.requires_grad for parameter in anchor.parameters())
    assert not anchor(tiny_views(2)).tokens_per_resolution[0].patches.requires_grad


def test_it_normalises_the_global_crops_or_its_own() -> None:
    anchor, views = Anchor(branch()), tiny_views(2)
    own = replace(views, anchor_crops=views.global_crops.flip(-1))
    for given, crops in ((views, views.global_crops), (own, views.global_crops.flip(-1))):
        expected = anchor.branch.backbone(normalise(crops, VIT.mean, VIT.std).flatten(0, 1))
        output = anchor(given)
        assert torch.equal(output.tokens_per_resolution[0].patches, expected.patches)
        assert torch.equal(output.image.flatten(0, 1), expected.cls)


@pytest.mark.parametrize(
    ("every", "most", "expected"), [(0, 3, []), (2, 3, [2, 4, 6]), (3, 1, [3])], ids=["never", "three times", "once"]
)
def test_the_teacher_replaces_it_every_few_steps(every: int, most: int, expected: list[int]) -> None:
    anchor = Anchor(branch(), refresh_every=every, max_refreshes=most)
    replaced = []
    for done in range(1, 12):
        teacher = branch(seed=done)
        anchor.refresh_if_due(teacher, done)
        states = zip(anchor.branch.state_dict().values(), teacher.state_dict().values(), strict=True)
        if all(torch.equal(a, b) for a, b in states):
            replaced.append(done)
    assert replaced == expected


def test_weights_that_were_never_trained_are_no_anchor_before_the_first_refresh() -> None:
    assert Anchor(branch(), refresh_every=5, trained=False).first_step == 5
    assert Anchor(branch(), refresh_every=5).first_step == 0
