"""MoCo-v3, against algorithm 1 of its paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.methods.image.moco_v3 import MoCoV3, MoCoV3Config
from tests.helpers.encodings import TwoSides, tokens_of
from tests.helpers.tiny import hyperparameters
from tests.parity.check import all_hold
from tests.parity.contrastive import replay_moco_v3

SETTINGS: dict[str, Any] = {"projector_hidden_dim": 8, "out_dim": 4, "predictor_hidden_dim": 8, "temp": 0.3}


def two_sides(views: int = 2, **settings: Any) -> TwoSides:
    torch.manual_seed(1)
    return TwoSides(MoCoV3(5, MoCoV3Config(**(SETTINGS | settings))), tokens_of(views))


def loss_of(sides: TwoSides) -> Tensor:
    losses = sides.objective(*sides.encodings(), sides.views(), hyperparameters())
    assert list(losses) == ["contrast"] == list(sides.objective.loss_weights)
    return losses["contrast"]


def algorithm_1(sides: TwoSides, temp: float) -> Tensor:
    def one_way(query: Tensor, key: Tensor) -> Tensor:
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temp
        return 2 * temp * F.cross_entropy(logits, torch.arange(len(query)))

    predict = sides.objective.predictor
    queries = [predict(sides.student["projector"](sides.tokens[view])) for view in range(2)]
    keys = [sides.teacher["projector"](sides.teacher_tokens[view]) for view in range(2)]
    return one_way(queries[0], keys[1]) + one_way(queries[1], keys[0])


@pytest.mark.parametrize("temp", [0.2, 1.0])
def test_loss_and_gradients_are_algorithm_1(temp: float) -> None:
    sides = two_sides(temp=temp)
    loss, expected = loss_of(sides), algorithm_1(sides, temp)
    torch.testing.assert_close(loss, expected)
    learned = [sides.tokens, *sides.student.parameters(), *sides.objective.parameters()]
    gradients = torch.autograd.grad(loss, learned)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, learned), strict=True):
        torch.testing.assert_close(got, wanted)


def test_layers_are_the_published_ones() -> None:
    objective = MoCoV3(5, MoCoV3Config(**SETTINGS))
    projector, predictor = objective.heads()["projector"], objective.predictor
    kinds = ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    assert [type(layer).__name__ for layer in projector] == kinds
    assert [type(layer).__name__ for layer in predictor] == [*kinds[:4], "BatchNorm"]
    assert [tuple(p.shape) for p in projector.parameters()] == [(8, 5), (8,), (8,), (8, 8), (8,), (8,), (4, 8)]
    assert [tuple(p.shape) for p in predictor.parameters()] == [(8, 4), (8,), (8,), (4, 8)]


def test_local_crops_do_not_matter() -> None:
    alone, beside = two_sides(), two_sides(views=4)
    beside.tokens.data[:2], beside.teacher_tokens[:2] = alone.tokens.data, alone.teacher_tokens
    torch.testing.assert_close(loss_of(beside), loss_of(alone), rtol=0, atol=0)


def test_only_two_global_crops_will_do() -> None:
    sides = two_sides(views=3)
    sides.num_global = 3
    with pytest.raises(ValueError, match="MoCo-v3 compares 2 global crops of an image, but there are 3; make 2"):
        loss_of(sides)


@pytest.mark.parametrize("wrong", ["temperature", "base_momentum"])
def test_parity_notices_a_wrong_setting(golden_dir: Path, wrong: str) -> None:
    settings = json.loads((golden_dir / "pieces" / "expected.json").read_text())["mocov3"]
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    assert all_hold(replay_moco_v3(settings, tensors))
    assert not all_hold(replay_moco_v3(settings | {wrong: settings[wrong] * 0.99}, tensors))
