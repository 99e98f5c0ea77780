"""Workload of an evaluation, which declares it just before it reads the first image; a dry run ends there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.evaluation.config import Precision


@dataclass(frozen=True)
class Training:
    """Training within an evaluation."""

    network: nn.Module
    """Everything that is trained, in training mode."""
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], Tensor]
    """Function that makes a dummy batch of that many images on the default device, and returns its loss. It must not
    depend on the values of tensors."""
    batch_size: int
    """Images in a step, over all processes."""
    steps: int
    precision: Precision = "float32"


@dataclass(frozen=True)
class Workload:
    """Workload ahead of an evaluation, once all is checked that can be checked without reading an image."""

    settings: Mapping[str, Any]
    """Resolved settings, as the result will record them."""
    data: Mapping[str, int]
    """Sizes of the data by name, e.g. `test images`."""
    forward: Callable[[Tensor], Any] | None = None
    """Forward pass of the network for normalised images [B, C, H, W] in the test; None without a network."""
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Shape [B, C, H, W] of a batch in the test; the largest, or a typical one with a note, where images differ."""
    encoded: int = 0
    """Number of images that go through `forward`, over the whole evaluation."""
    training: Training | None = None
    notes: tuple[str, ...] = ()
    """Sentences on what the estimate assumes or leaves out."""


class DryRunEnds(Exception):
    """Ends an evaluation in a dry run; carries its workload."""

    def __init__(self, workload: Workload) -> None:
        super().__init__("a dry run ends before the first image is read")
        self.workload = workload
