"""Learning-rate factors of fine-tuning and probes, and the cosine that pre-training (`training.optim`) shares."""

import math
from collections.abc import Callable

Factor = Callable[[int], float]
"""A step, counted from 0 -> the factor on the base learning rate."""


def cosine(step: int, num_steps: int, start: float, end: float) -> float:
    """Return the value at `step` of half a cosine that falls or rises from `start` to `end` over `num_steps` steps."""
    return end + (start - end) * (1 + math.cos(math.pi * step / num_steps)) / 2


def cosine_factor(num_steps: int, *, warmup: int = 0, end: float = 0.0) -> Factor:
    """Return a factor that rises linearly to 1 over the `warmup` steps, then falls to `end` along a cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return cosine(step - warmup, max(1, num_steps - warmup), 1.0, end)

    return factor


def epoch_factor(steps_per_epoch: int, epochs: int, *, warmup: int, start: float, end: float) -> Factor:
    """Return the factor of DeiT's training loop, which is constant within an epoch and one epoch late.

        epoch e, t = max(0, e - 1):
            t < warmup:  start + (1 - start) * t / warmup
            else:        cosine from 1 to `end`, at t of all epochs

    The loop sets timm's cosine schedule after an epoch, by the number of that epoch.
    """

    def factor(step: int) -> float:
        t = max(0, step // steps_per_epoch - 1)
        if t < warmup:
            return start + (1 - start) * t / warmup
        return cosine(t, epochs, 1.0, end)

    return factor


def polynomial_factor(
    num_steps: int, *, power: float = 1.0, warmup: int = 0, start: float = 1e-6, end: float = 0.0
) -> Factor:
    """Return the factor (1 - step / num_steps)^power of segmentation, which falls to `end`.

    During the `warmup` steps it is multiplied by a second factor that rises linearly from `start` to 1.
    """

    def factor(step: int) -> float:
        decayed = end + (1 - end) * (1 - step / num_steps) ** power
        return decayed * (1 - (1 - step / warmup) * (1 - start)) if step < warmup else decayed

    return factor


def one_cycle_factor(num_steps: int, *, warmup: int = 0, start: float = 1e-6) -> Factor:
    """Return the factor of DINOv3's linear segmentation: a warm-up, then half a cosine that began with the first step.

        t = max(0, step - 1), because the released loop does not move on after its first step
        t < warmup:  the factor of `polynomial_factor`
        else:        cosine from 1 to 0, at t + 1 of all steps

    The peak of 1 is never reached.
    """
    rising = polynomial_factor(num_steps, warmup=warmup, start=start)

    def factor(step: int) -> float:
        t = max(0, step - 1)
        return rising(t) if t < warmup else cosine(t + 1, num_steps, 1.0, 0.0)

    return factor
