"""Numbers that torchrun announces to its processes in the environment; imports nothing heavy."""

import os


def announced_rank() -> int:
    """Return the number of this process, from 0; 0 for one process, whatever RANK says without WORLD_SIZE."""
    return int(os.environ.get("RANK", "0")) if announced_world_size() > 1 else 0


def announced_world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def max_restarts() -> int:
    """Return how often torchrun starts all processes again when one fails (its `--max-restarts`); 0 without it."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
