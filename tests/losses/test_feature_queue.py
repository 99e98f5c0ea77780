"""The queue that a batch sees with its own features in it."""

from __future__ import annotations

import torch
from torch import Tensor

from selfpatch.losses.feature_queue import FeatureQueue
from tests.helpers.workers import WorkerPool


def features(*numbers: int) -> Tensor:
    return torch.tensor(numbers).float()[:, None].expand(-1, 2)


def numbers(rows: Tensor, count: Tensor) -> list[int]:
    return rows[: int(count), 0].int().tolist()


def held(queue: FeatureQueue) -> list[int]:
    return numbers(queue.features, queue.num_filled)


def test_a_batch_sees_its_own_features_first_and_the_newest_stay() -> None:
    queue = FeatureQueue(5, 2)
    for step, expected in [((1, 2), [1, 2]), ((3, 4), [3, 4, 1, 2]), ((5, 6), [5, 6, 3, 4, 1])]:
        rows, count = queue.push(features(*step))
        assert rows.shape == (5, 2)
        assert numbers(rows, count) == expected
        queue.update()
        assert held(queue) == expected
    rows, count = queue.push(features(1, 2, 3, 4, 5, 6, 7))
    assert numbers(rows, count) == [1, 2, 3, 4, 5]


def test_micro_batches_enter_at_the_end_of_the_step() -> None:
    queue = FeatureQueue(4, 2)
    queue.push(features(1, 2))
    assert numbers(*queue.push(features(3, 4))) == [3, 4], "a micro-batch does not see the others of its step"
    assert held(queue) == []
    queue.update()
    assert held(queue) == [3, 4, 1, 2]
    queue.update()  # nothing was pushed since
    assert held(queue) == [3, 4, 1, 2]


def test_a_discarded_step_leaves_no_trace() -> None:
    queue = FeatureQueue(4, 2)
    queue.push(features(1, 2) * float("nan"))
    queue.discard()
    queue.update()
    assert held(queue) == []
    assert (queue.features == 0).all()


def test_features_hold_no_graph_and_are_saved() -> None:
    queue = FeatureQueue(4, 2)
    queue.push(torch.randn(2, 2, dtype=torch.bfloat16, requires_grad=True) * 2)
    queue.update()
    assert not queue.features.requires_grad
    assert queue.features.dtype == torch.float32
    assert set(queue.state_dict()) == {"features", "num_filled"}


def push_on_each(rank: int) -> list[int]:
    return numbers(*FeatureQueue(3, 2).push(features(rank + 1, rank + 11)))


def test_processes_share_a_queue(pool: WorkerPool) -> None:
    assert pool.run(push_on_each) == [[1, 11, 2]] * 2
