"""Training inside an evaluation: the same batches and the same end, however it is stopped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfpatch.core.schedules import cosine_factor
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.probe_training import CHECKPOINT, TrainingPlan, fit
from selfpatch.evaluation.result import Output


def load(number: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.from_numpy(rng.random(3)).float()
    return torch.tensor([number, 1.0, -1.0]) / 10 + noise, torch.tensor(float(number % 2))


def batches(**settings: int) -> Batches:
    return Batches(10, load, **{"batch_size": 4, "seed": 3, **settings})


class Stop(Exception):
    pass


def train(
    out: Path | None, stop_at: int | None = None, steps: int = 9, rate: float = 0.1
) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)).train()
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    seen = 0

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal seen
        if seen == stop_at:
            raise Stop
        seen += 1
        return nn.functional.binary_cross_entropy_with_logits(head(batch[0])[:, 0], batch[1])

    plan = TrainingPlan(steps, cosine_factor(steps, warmup=2), seed=1, save_every=0.0)
    return head, fit(head, loss, batches(), optimizer, plan, settings={"rate": rate}, output=Output(out))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_stopped_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, losses = train(None)
    for stop in (1, 5):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            train(folder, stop_at=stop)
        resumed, rest = train(folder)
        assert same(whole, resumed)
        assert rest == losses[stop:]
    done, none = train(tmp_path / "1")
    assert same(whole, done)
    assert none == []


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(rate 0.1 there, 0.2 now\); give an"):
        train(tmp_path, rate=0.2)
    assert (tmp_path / CHECKPOINT).is_file()


@pytest.mark.parametrize("kept", [0, 0.5, 0.99], ids=["empty", "half", "all but the end"])
def test_a_checkpoint_that_is_cut_off_is_passed_over(kept: float, tmp_path: Path) -> None:
    whole, losses = train(None)
    with pytest.raises(Stop):
        train(tmp_path, stop_at=5)
    path = tmp_path / CHECKPOINT
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.warns(UserWarning, match=r"fitting.pt cannot be read, and the training starts again"):
        resumed, again = train(tmp_path)
    assert same(whole, resumed)
    assert again == losses


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d; use a lower learning rate"):
        train(tmp_path, rate=float("inf"))


def test_batches_do_not_depend_on_workers_or_on_where_one_begins() -> None:
    expected = list(batches().steps(0, 5))
    assert batches().steps_per_epoch == 2
    for other in (list(batches(workers=2).steps(0, 5)), [*batches().steps(0, 3), *batches().steps(3, 5)]):
        for (x, y), (got_x, got_y) in zip(expected, other, strict=True):
            assert torch.equal(x, got_x)
            assert torch.equal(y, got_y)
    first, second = expected[0], expected[2]
    assert not torch.equal(first[0], second[0]), "each epoch has an order and an augmentation of its own"
    other_seed = next(iter(batches(seed=4).steps(0, 1)))
    assert not torch.equal(first[0], other_seed[0])


def test_an_epoch_shows_each_sample_at_most_once() -> None:
    seen: list[int] = []
    collected = Batches(10, lambda number, rng: number, batch_size=4, seed=0, collate=list)
    for batch in collected.steps(0, 2):
        seen += batch
    assert len(seen) == len(set(seen)) == 8


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a batch of 11 cannot be drawn from 10 training samples; use a batch of 1 to 10"
    ):
        batches(batch_size=11)


def load_all_but_three(number: int, rng: np.random.Generator) -> Tensor:
    if number == 3:
        raise ValueError("sample 3 cannot be read")
    return torch.zeros(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_data_keeps_its_sentence(workers: int) -> None:
    damaged = Batches(4, load_all_but_three, batch_size=2, seed=0, workers=workers)
    with pytest.raises(ValueError, match=r"^sample 3 cannot be read$"):
        list(damaged.steps(0, 2))


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="workers is -1; use 0 or more"):
        batches(workers=-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_samples_differ_and_stand_apart(workers: int) -> None:
    """Copies of a sample are consecutive in the order of DeiT's sampler, so that one step sees all of them."""

    def numbered(number: int, rng: np.random.Generator) -> tuple[int, float]:
        return number, float(rng.random())

    drawn = Batches(13, numbered, batch_size=6, seed=3, repeats=3, workers=workers)
    plain = Batches(13, numbered, batch_size=6, seed=3)
    assert drawn.steps_per_epoch == plain.steps_per_epoch == 2
    epoch = list(drawn.steps(0, 2))
    order = [number for numbers, _ in plain.steps(0, 2) for number in numbers.tolist()]
    for step, (numbers, noise) in enumerate(epoch):
        expected = order[2 * step : 2 * step + 2]
        assert numbers.tolist() == expected * 3
        assert len(set(noise.tolist())) == 6
        assert all(a != b for a, b in zip(numbers, numbers.roll(1), strict=True))
    assert torch.equal(next(drawn.steps(1, 2))[1], epoch[1][1])
