"""MoBY, against its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.methods.image.moby import MoBY, MoBYConfig
from tests.helpers.encodings import TwoSides, commit, tokens_of
from tests.helpers.tiny import hyperparameters
from tests.parity.check import all_hold
from tests.parity.contrastive import replay_moby

SETTINGS: dict[str, Any] = {"hidden_dim": 8, "out_dim": 4, "queue_size": 12, "temp": 0.3}


def two_sides(views: int = 2, **settings: Any) -> TwoSides:
    torch.manual_seed(1)
    return TwoSides(MoBY(5, 6, MoBYConfig(**(SETTINGS | settings))), tokens_of(views))


def loss_of(sides: TwoSides) -> Tensor:
    losses = sides.objective(*sides.encodings(), sides.views(), hyperparameters())
    assert list(losses) == ["contrast"] == list(sides.objective.loss_weights)
    return losses["contrast"]


def keys_of(sides: TwoSides) -> list[Tensor]:
    return [F.normalize(sides.teacher["projector"](x), dim=1) for x in sides.teacher_tokens[:2]]


def queues_of(sides: TwoSides) -> tuple[MemoryBank, MemoryBank]:
    return sides.objective.queue1, sides.objective.queue2


def as_defined(sides: TwoSides, temp: float) -> Tensor:
    def one_way(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        query = F.normalize(query, dim=1)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temp
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))

    predict, queues = sides.objective.predictor, queues_of(sides)
    queries = [predict(sides.student["projector"](sides.tokens[view])) for view in range(2)]
    keys = keys_of(sides)
    return one_way(queries[0], keys[1], queues[1].keys) + one_way(queries[1], keys[0], queues[0].keys)


@pytest.mark.parametrize("temp", [0.2, 1.0])
def test_loss_and_gradients_are_as_defined(temp: float) -> None:
    sides = two_sides(temp=temp)
    loss, expected = loss_of(sides), as_defined(sides, temp)
    torch.testing.assert_close(loss, expected)
    learned = [sides.tokens, *sides.student.parameters(), *sides.objective.parameters()]
    gradients = torch.autograd.grad(loss, learned)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, learned), strict=True):
        torch.testing.assert_close(got, wanted)


def test_each_view_fills_its_own_queue_at_the_end_of_the_step() -> None:
    sides = two_sides()
    before = [queue.keys.clone() for queue in queues_of(sides)]
    loss_of(sides)
    for queue, keys in zip(queues_of(sides), before, strict=True):
        assert torch.equal(queue.keys, keys)
    commit(sides.objective)
    for queue, old, new in zip(queues_of(sides), before, keys_of(sides), strict=True):
        torch.testing.assert_close(queue.keys, torch.cat([new, old[6:]]))


def test_layers_are_the_published_ones() -> None:
    objective = MoBY(5, 6, MoBYConfig(**SETTINGS))
    projector, predictor = objective.heads()["projector"], objective.predictor
    for layers, width in ((projector, 5), (predictor, 4)):
        assert [type(layer).__name__ for layer in layers] == ["Linear", "BatchNorm", "ReLU", "Linear"]
        assert [tuple(p.shape) for p in layers.parameters()] == [(8, width), (8,), (8,), (8,), (4, 8), (4,)]


def test_local_crops_do_not_matter() -> None:
    alone, beside = two_sides(), two_sides(views=4)
    beside.tokens.data[:2], beside.teacher_tokens[:2] = alone.tokens.data, alone.teacher_tokens
    torch.testing.assert_close(loss_of(beside), loss_of(alone), rtol=0, atol=0)


def test_only_two_global_crops_will_do() -> None:
    sides = two_sides(views=3)
    sides.num_global = 3
    with pytest.raises(ValueError, match="MoBY compares 2 global crops of an image, but there are 3; make 2"):
        loss_of(sides)


def test_a_queue_that_batches_do_not_fill_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"moby.queue_size is 4096, which the batch of 96 .* use a multiple, e.g. 4128"
    ):
        MoBY(5, 96, MoBYConfig())


@pytest.mark.parametrize("wrong", ["temperature", "base_momentum"])
def test_parity_notices_a_wrong_setting(golden_dir: Path, wrong: str) -> None:
    settings = json.loads((golden_dir / "pieces" / "expected.json").read_text())["moby"]
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    assert all_hold(replay_moby(settings, tensors))
    assert not all_hold(replay_moby(settings | {wrong: settings[wrong] * 0.99}, tensors))


def test_parity_notices_queues_that_are_swapped(golden_dir: Path) -> None:
    settings = json.loads((golden_dir / "pieces" / "expected.json").read_text())["moby"]
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    first, second = "moby.initial.queue1", "moby.initial.queue2"
    swapped = tensors | {first: tensors[second], second: tensors[first]}
    assert not all_hold(replay_moby(settings, swapped))
