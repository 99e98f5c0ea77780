"""Retention of the anchor's patches, against a loop over patches."""

from __future__ import annotations

import torch

from selfpatch.losses.distill import PatchDistillationConfig
from selfpatch.methods.patch.retain import Retain
from tests.helpers.encodings import grid_outputs, views_of
from tests.helpers.tiny import hyperparameters


def test_patches_are_those_of_the_loop() -> None:
    student, anchor = grid_outputs(3, 5), grid_outputs(3, 5, seed=1)
    rows = [out.tokens_per_resolution[0].patches.flatten(0, 2) for out in (student, anchor)]
    cosine = [1 - torch.cosine_similarity(x, t, dim=0) for x, t in zip(*rows, strict=True)]
    squared = [(x - t).square().mean() for x, t in zip(*rows, strict=True)]
    for config, expected in (
        (PatchDistillationConfig(cosine=1, smooth_l1=0), cosine),
        (PatchDistillationConfig(cosine=0, smooth_l1=0, mse=1), squared),
    ):
        loss = Retain(5, 5, config)(student, anchor, views_of(2), hyperparameters())["retain"]
        torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_an_anchor_of_other_patches_is_met_on_its_grid() -> None:
    objective = Retain(5, 5, PatchDistillationConfig())
    student = grid_outputs(3, 5)
    same = objective(student, student, views_of(2), hyperparameters())["retain"]
    assert float(same) < 1e-6
    assert objective(student, grid_outputs(4, 5), views_of(2), hyperparameters())["retain"] > 0.1
