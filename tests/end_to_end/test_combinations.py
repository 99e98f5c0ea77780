"""Every method with every objective on every kind of backbone: it trains, resumes exactly and keeps its losses."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch

from selfpatch.methods.registry import METHODS, OBJECTIVES
from tests.helpers import curves
from tests.helpers.curves import Combination, Training, combinations
from tests.helpers.tiny import tiny_student_teacher


def _marked(combination: Combination) -> Any:
    """Run every method and every objective once on a ViT; other backbones and combinations are slow."""
    method, objective, model, _ = combination
    quick = model == "vit_tiny" and (objective == "selfpatch+sere" or method in ("dino", "none"))
    return pytest.param(combination, id=str(combination), marks=() if quick else pytest.mark.slow)


ALL = pytest.mark.parametrize("combination", [_marked(combination) for combination in combinations()])


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[dict[str, float]]]:
    return json.loads(curves.FILE.read_text())


def test_all_of_the_tables_are_here() -> None:
    assert set(curves.METHODS) == set(METHODS)
    combined = (*curves.OBJECTIVES, *curves.TOGETHER)
    assert {name for names in combined for name in names.split("+")} == {"none", *OBJECTIVES}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@ALL
def test_it_trains_resumes_exactly_and_keeps_its_losses(
    combination: Combination, recorded: dict[str, list[dict[str, float]]]
) -> None:
    training = Training(combination)
    before = {name: p.clone() for name, p in training.student_teacher.teacher.named_parameters()}
    found = [training.step(0)]
    without = [n for n, p in training.student_teacher.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "these parameters received no gradient"
    moved = {n for n, p in training.student_teacher.teacher.named_parameters() if not torch.equal(p, before[n])}
    still = {n for n, p in training.student_teacher.student.named_parameters() if p.requires_grad} - moved
    assert not still, "the teacher did not follow here"

    found.append(training.step(1))
    state = through_a_file([training.student_teacher.state_dict(), training.optimizer.state_dict()])
    found.append(training.step(2))
    resumed = Training(combination)
    resumed.student_teacher.load_state_dict(state[0])
    resumed.optimizer.load_state_dict(state[1])
    assert resumed.step(2) == found[2]
    ends = (t.student_teacher.state_dict() for t in (training, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))

    for step, (row, expected) in enumerate(zip(found, recorded[str(combination)], strict=True)):
        assert row == pytest.approx(expected, rel=2e-3), f"losses of step {step}"


@pytest.mark.parametrize("model", sorted({*curves.MODELS} - {*curves.MASKABLE}))
@pytest.mark.parametrize("objective", curves.OBJECTIVES)
def test_what_has_no_meaning_is_refused(objective: str, model: str) -> None:
    with pytest.raises(ValueError, match=f"ibot hides patches from the student, but {model} embeds no patches"):
        tiny_student_teacher(method="ibot", objective=objective, model=model)
