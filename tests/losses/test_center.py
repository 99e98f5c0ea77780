"""The moving average of the teacher's logits."""

from __future__ import annotations

import pytest
import torch

from selfpatch.losses.center import Center


def test_center_is_a_moving_average() -> None:
    center = Center(2, momentum=0.9)
    center.accumulate(torch.tensor([1.0, -2.0]))
    assert torch.equal(center.center, torch.zeros(2)), "a centre moves at the end of a step, not within"
    center.update()
    torch.testing.assert_close(center.center, torch.tensor([0.1, -0.2]))
    center.update()  # nothing was observed since
    torch.testing.assert_close(center.center, torch.tensor([0.1, -0.2]))
    center.accumulate(torch.tensor([0.0, 1.0]))
    center.update()
    torch.testing.assert_close(center.center, torch.tensor([0.09, -0.08]))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_center_over_micro_batches_is_that_of_the_batch(parts: int) -> None:
    logits = torch.randn(6, 5, generator=torch.manual_seed(0))
    center = Center(5, momentum=0.8)
    for chunk in logits.chunk(parts):
        center.accumulate(chunk.mean(0))
    center.update()
    torch.testing.assert_close(center.center, 0.2 * logits.mean(0))


def test_a_discarded_step_leaves_no_trace_in_the_center() -> None:
    center = Center(2)
    center.accumulate(torch.tensor([float("nan"), 1.0]))
    center.discard()
    center.update()
    assert torch.equal(center.center, torch.zeros(2))
