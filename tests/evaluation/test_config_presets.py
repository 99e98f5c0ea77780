"""Presets say how they differ, in one form for every evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from selfpatch.cli.main import main
from selfpatch.evaluation.config import describe_presets, preset_tables
from selfpatch.evaluation.registry import EVALUATIONS


@dataclass(frozen=True)
class Protocol:
    steps: int = 100
    lr: float = 1e-3
    sides: tuple[int, ...] = (1, 2)
    same: str = "everywhere"


def test_only_what_differs_is_told() -> None:
    text = describe_presets({"published": Protocol(), "small": Protocol(steps=5, sides=tuple(range(480, 801, 32)))})
    assert text.splitlines() == ["       published  small", "steps  100        5", "sides  1 2        480 512 ... 800"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("segment", ["linear", "leopart", "fpn", "pyramid", "upernet", "ibot_small", "voc", "imagenet_s"]),
        ("detect", ["selfpatch", "vitdet-simple", "large-scale-jitter"]),
        ("linear", ["dino", "sweep"]),
        ("finetune", ["mae", "ibot", "cifar", "inaturalist"]),
        ("davis", ["dino", "dinov3", "dinov3_notebook"]),
        ("depth", ["dinov3", "dinov2", "small"]),
        ("retrieval", ["dino", "dinov3"]),
        ("correspond", ["patch", "dense_keys", "dift", "probe3d", "dinov3", "small"]),
        ("navi", ["probe3d", "dinov3", "small"]),
    ],
)
def test_a_command_prints_them(capsys: pytest.CaptureFixture[str], name: str, words: list[str]) -> None:
    assert main(["evaluate", name, "--presets"]) == 0
    shown = capsys.readouterr().out.split()
    assert all(word in shown for word in words)


@pytest.mark.parametrize("method", [["--method", "knn"], ["--method=knn"]])
def test_a_method_prints_its_own(capsys: pytest.CaptureFixture[str], method: list[str]) -> None:
    assert main(["evaluate", "segment", "--presets", *method]) == 0
    shown = capsys.readouterr().out.split()
    assert shown[:3] == ["knn", "whole", "hummingbird"]
    assert "leopart" not in shown
    assert main(["evaluate", "segment", "--method", "logistic", "--presets"]) == 2
    assert "segment --method logistic has no presets" in capsys.readouterr().err
    assert main(["evaluate", "segment", "--method", "forest", "--presets"]) == 2
    assert "method is 'forest'; use one of: knn, linear" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [name for name, config in EVALUATIONS.items() if name not in ("discover", "knn", "match")]
)
def test_no_line_is_wider_than_a_terminal(name: str) -> None:
    """Every preset and every setting that differs is still there, below where the line is full."""
    table = preset_tables(EVALUATIONS[name], name)
    assert max(map(len, table.splitlines())) <= 80
    if name == "detect":
        first, second = table.split("\n\n")
        assert [line.split()[0] for line in first.splitlines()[1:]] == [
            line.split()[0] for line in second.splitlines()[1:]
        ]
        assert first.split("\n")[0].split() + second.split("\n")[0].split() == list(EVALUATIONS[name].presets)


def test_an_evaluation_without_presets_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "knn", "--presets"]) == 2
    assert "knn has no presets; its defaults are the published protocol" in capsys.readouterr().err


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_preset_decides_what_a_class_is_not_given(name: str) -> None:
    """As on the command line; its name alone would stand in results for another protocol."""
    setting, kinds = EVALUATIONS[name].variants or ("", {"": EVALUATIONS[name]})
    for value, kind in kinds.items():
        for preset in kind.presets:
            chosen = {setting: value, "preset": preset} if setting else {"preset": preset}
            assert kind(preset=preset) == EVALUATIONS[name].from_settings(chosen)
