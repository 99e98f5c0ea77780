"""Seeds of the random numbers that a training step draws."""

import numpy as np


def step_seed(seed: int, step: int, *rank: int) -> int:
    """Return the seed of what a step itself draws, such as drop path, so that no generator's state need be saved.

    `seed` is the run's; `rank` is the process's where each draws for itself.
    """
    return int(np.random.SeedSequence((seed, step, *rank)).generate_state(1, np.uint64)[0] >> 1)
