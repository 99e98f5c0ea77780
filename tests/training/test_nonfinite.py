"""Counting of steps that are not finite, without waiting for the newest one."""

from __future__ import annotations

import torch

from selfpatch.training.nonfinite import DeferredFlag, NonFiniteCounter


class NotYet(DeferredFlag):
    """A flag that fails the test if it is looked at too early."""

    def __init__(self, taken: bool) -> None:
        super().__init__(torch.tensor(taken))
        self.known = False

    def __bool__(self) -> bool:
        assert self.known
        return super().__bool__()


def test_a_step_is_judged_when_the_next_is_on_its_way() -> None:
    counter = NonFiniteCounter(3)
    for taken in (True, False, True, True, False):
        flag = NotYet(taken)
        assert not counter.reaches_limit(flag)
        flag.known = True


def test_the_last_chance_is_judged_at_once() -> None:
    counter = NonFiniteCounter(3)
    outcomes = [False, True, False, False, True, False, False, False]
    assert [counter.reaches_limit(DeferredFlag(torch.tensor(taken))) for taken in outcomes] == [False] * 7 + [True]
    assert NonFiniteCounter(1).reaches_limit(DeferredFlag(torch.tensor(False)))
    assert not NonFiniteCounter(1).reaches_limit(DeferredFlag(torch.tensor(True)))
