"""Seeds of the random numbers that a training step draws."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


def step_seed(seed: int, step: int, *rank: int) -> int:
    """Return the seed of what a step itself draws, such as drop path, so that no generator's state need be saved.

    `seed` is the run's; `rank` is the process's where each draws for itself.
    """
    return int(np.random.SeedSequence((seed, step, *rank)).generate_state(1, np.uint64)[0]) >> 1


@contextlib.contextmanager
def seeded_step(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators by `step_seed` inside; the caller's random state stays as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(step_seed(seed, step))
        yield


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Return a generator of what a step draws alike on every process, on their device."""
    return torch.Generator(device).manual_seed(step_seed(seed, step))
