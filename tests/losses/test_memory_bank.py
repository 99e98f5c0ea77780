"""The queue of keys: first in, first out, whole steps at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.losses.memory_bank import MemoryBank, check_bank_size


def keys(*numbers: int) -> Tensor:
    return torch.tensor(numbers).float()[:, None].expand(-1, 2)


def held(queue: MemoryBank) -> list[int]:
    """The numbers of the keys by their age, oldest first."""
    return queue.keys[:, 0].roll(-int(queue.pointer)).int().tolist()


def queue_of(size: int) -> MemoryBank:
    queue = MemoryBank(size, 2)
    queue.keys.zero_()
    return queue


def test_it_begins_with_random_keys_of_norm_one() -> None:
    queue = MemoryBank(8, 5)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(8))
    assert len(queue.keys.unique(dim=0)) == 8
    assert set(dict(queue.named_buffers())) == {"keys", "pointer"}, "a resumed run goes on with both"


def test_first_in_first_out() -> None:
    queue = queue_of(4)
    for step, expected in [((1, 2), [0, 0, 1, 2]), ((3, 4), [1, 2, 3, 4]), ((5, 6), [3, 4, 5, 6])]:
        queue.accumulate(keys(*step))
        queue.update()
        assert held(queue) == expected


def test_steps_that_do_not_divide_it_go_around_its_end() -> None:
    queue = queue_of(5)
    for step, expected in [((1, 2, 3), [0, 0, 1, 2, 3]), ((4, 5, 6), [2, 3, 4, 5, 6]), ((7,), [3, 4, 5, 6, 7])]:
        queue.accumulate(keys(*step))
        queue.update()
        assert held(queue) == expected


def test_of_a_step_that_is_larger_the_newest_stay() -> None:
    queue = queue_of(3)
    queue.accumulate(keys(1, 2, 3, 4, 5))
    queue.update()
    assert held(queue) == [3, 4, 5]


def test_micro_batches_enter_together_at_the_end_of_the_step() -> None:
    queue = queue_of(4)
    queue.accumulate(keys(1, 2))
    queue.accumulate(keys(3, 4))
    assert held(queue) == [0, 0, 0, 0], "the negatives of a step stay the same within it"
    queue.update()
    assert held(queue) == [1, 2, 3, 4]
    queue.update()  # nothing was observed since
    assert held(queue) == [1, 2, 3, 4]


def test_a_discarded_step_leaves_no_trace() -> None:
    queue = queue_of(4)
    queue.accumulate(keys(1, 2) * float("nan"))
    queue.discard()
    queue.update()
    assert held(queue) == [0, 0, 0, 0]
    assert queue.pointer == 0


def test_keys_hold_no_graph() -> None:
    queue, key = MemoryBank(4, 2), torch.randn(2, 2, dtype=torch.bfloat16, requires_grad=True)
    queue.accumulate(key * 2)
    queue.update()
    assert not queue.keys.requires_grad
    assert queue.keys.dtype == torch.float32


@pytest.mark.parametrize(("size", "batch", "advice"), [(4096, 96, 4128), (100, 64, 128), (10, 64, 64)])
def test_a_queue_that_batches_do_not_fill_is_refused(size: int, batch: int, advice: int) -> None:
    with pytest.raises(ValueError, match=f"q is {size}, which the batch of {batch} .* e.g. {advice}$"):
        check_bank_size("q", size, batch)
    check_bank_size("q", advice, batch)
