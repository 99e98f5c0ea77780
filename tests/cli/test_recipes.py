"""`selfpatch recipes`."""

from __future__ import annotations

import pytest

from selfpatch.cli.main import main
from selfpatch.config.parsing import parse_yaml
from selfpatch.config.recipes import recipe_names


def test_every_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    page = capsys.readouterr().out
    own, published = page.split("Published settings")
    names = [line.strip() for line in page.splitlines() if line.startswith("  ") and not line.startswith("    ")]
    assert sorted(names) == recipe_names()
    assert "  post-train-patches\n    Better patch features from strong weights in minutes" in own
    assert "  selfpatch-dino-vits16\n    DINO + SelfPatch, ViT-S/16, ImageNet-1k" in published
    assert max(map(len, page.splitlines()[:-1])) <= 80


def test_one_recipe_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "small-neco-dino"]) == 0
    assert parse_yaml(capsys.readouterr().out, "page")["extends"] == "small-cpu"
    assert main(["recipes", "nothing"]) == 2
    assert "no recipe 'nothing'; use the path of a .yaml file or one of" in capsys.readouterr().err
