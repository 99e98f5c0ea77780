"""Seeds of a step."""

from __future__ import annotations

from selfpatch.core.seeds import step_seed


def test_step_seeds_differ_and_stay_what_they_are() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(4)}
    assert len(seeds) == 3 * 20 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(0, 1, 2) == 1535930435702422785, "runs that were begun before would go on with other noise"
