"""The worked example of docs/adding-a-method.md really runs, from the page."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from selfpatch.config.recipes import load_recipe
from selfpatch.methods.registry import METHODS
from selfpatch.training.factory import make_student_teacher
from tests.helpers import tiny
from tests.helpers.curves import Combination, Training

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


def block(language: str) -> str:
    """The first code block of a language on the page."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def byol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's file and row."""
    (tmp_path / "byol_of_the_page.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "byol", importlib.import_module("byol_of_the_page").BYOL)
    monkeypatch.setitem(tiny.COMPONENTS, "byol", {"hidden_dim": 16, "out_dim": 8})


@pytest.mark.usefixtures("byol")
@pytest.mark.parametrize("model", ["vit_tiny", "swin_tiny"])
@pytest.mark.parametrize("objective", ["none", "selfpatch", "selfpatch+sere"])
def test_the_method_of_the_page_trains(objective: str, model: str) -> None:
    training = Training(Combination("byol", objective, model))
    losses = [training.step(0)["prediction"] for _ in range(4)]  # of the same crops
    assert all(p.grad is not None for p in training.student_teacher.parameters() if p.requires_grad)
    assert 4 >= losses[0] > losses[-1] >= 0


@pytest.mark.usefixtures("byol")
def test_the_recipe_of_the_page_loads(tmp_path: Path) -> None:
    file = tmp_path / "byol-vits16.yaml"
    file.write_text(block("yaml"))
    config = load_recipe(str(file))
    assert config.components == {"byol": {"hidden_dim": 4096, "out_dim": 256}}
    make_student_teacher(config.override({"model": "vit_tiny", "backbone": {"depth": 1}, "byol": {"hidden_dim": 8}}))
