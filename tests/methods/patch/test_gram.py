"""Gram anchoring of the global crops, against a loop over crops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from selfpatch.losses.gram import GramConfig
from selfpatch.methods.patch.gram import Gram
from tests.helpers.encodings import grid_outputs, views_of
from tests.helpers.tiny import hyperparameters


@pytest.mark.parametrize("side", [3, 6])
def test_similarities_are_compared_on_the_students_grid(side: int) -> None:
    student, anchor = grid_outputs(3, 5), grid_outputs(side, 7, seed=1)
    loss = Gram(GramConfig())(student, anchor, views_of(2), hyperparameters())["gram"]
    expected = []
    for x, t in zip(*(out.tokens_per_resolution[0].patches for out in (student, anchor)), strict=True):
        target = t if side == 3 else F.interpolate(t.movedim(-1, 0)[None], (3, 3), mode="bicubic")[0].movedim(0, -1)
        grams = (n @ n.T for n in (F.normalize(m.flatten(0, 1), dim=1) for m in (x, target)))
        difference = next(grams) - next(grams)
        expected.append(difference.square().mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_crops_of_one_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="crops are one patch only; use larger crops"):
        Gram(GramConfig()).check_grid("global_crops", 1, 1)
