"""Statistics of channels over steps, micro-batches and failed steps."""

from __future__ import annotations

import torch

from selfpatch.losses.channel_statistics import ChannelStatistics


def test_tokens_are_standardised_by_all_earlier_steps() -> None:
    statistics = ChannelStatistics(3)
    tokens = 2 + 3 * torch.randn(4, 2, 6, 3, generator=torch.manual_seed(0))  # four steps of two micro-batches
    for step, micro_batches in enumerate(tokens):
        for x in micro_batches:
            earlier = tokens[:step].flatten(0, 2)
            expected = (x - earlier.mean(0)) / earlier.std(0, correction=0) if step else x
            torch.testing.assert_close(statistics(x), expected)
        statistics.update()


def test_a_failed_step_is_forgotten() -> None:
    statistics = ChannelStatistics(3)
    statistics(torch.full((2, 3), float("nan")))
    statistics.discard()
    statistics(torch.ones(2, 3))
    statistics.update_where(torch.tensor(False))
    assert int(statistics.num_steps) == 0
    assert torch.equal(statistics.mean, torch.zeros(3))
