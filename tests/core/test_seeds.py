"""Seeds of a step."""

from __future__ import annotations

import torch

from selfpatch.core.seeds import seeded_step, step_seed


def test_step_seeds_differ_and_stay_what_they_are() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(4)}
    assert len(seeds) == 3 * 20 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(0, 1, 2) == 1535930435702422785, "runs that were begun before would go on with other noise"


def test_a_seeded_step_draws_the_same_and_leaves_the_random_state() -> None:
    drawn = []
    for caller in (1, 2):
        torch.manual_seed(caller)
        before = torch.get_rng_state()
        with seeded_step(0, 3, torch.device("cpu")):
            drawn.append(torch.rand(4))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)
