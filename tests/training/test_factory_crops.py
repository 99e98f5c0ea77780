"""Sizes of crops that do not go with what is learned on them."""

from __future__ import annotations

from typing import Any

import pytest

from selfpatch.training.factory import make_student_teacher
from tests.helpers.tiny import tiny_config

ALL: dict[str, Any] = {"k": 4, "window": "all"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "paka", "pairs": {"clean_size": 30}},
            "pairs.clean_size is 30: .* does not divide",
        ),
        (
            {"objective": "sere_pairs", "pairs": {"contained_size": 4}},
            "contained_size is 4: a crop is one patch only",
        ),
        ({"objective": "paka", "pairs": {"clean_size": 4}}, "pairs.clean_size is 4: a crop is one patch only"),
        (
            {"objective": "selfpatch_pairs", "pairs": {"clean_size": 8}, "selfpatch_pairs": ALL},
            "k is 4, but in a view of 2 x 2 patches a patch has 3 neighbours; lower k, or use larger crops",
        ),
        ({"objective": "selfpatch", "crops": {"local_size": 8}, "selfpatch": ALL}, "in a view of 2 x 2 patches"),
    ],
)
def test_crops_that_are_too_small_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_student_teacher(tiny_config(method="none", **settings))


def test_only_crops_that_an_objective_sees_are_checked() -> None:
    config = tiny_config(objective="selfpatch+selfpatch_pairs")
    changes = {"selfpatch": ALL, "selfpatch_pairs": ALL, "pairs": {"clean_size": 16, "contained_size": 8}}
    make_student_teacher(config.override(changes))
