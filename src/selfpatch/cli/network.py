"""Options that name a network, shared by the commands that read one."""

from __future__ import annotations

from typing import Annotated

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.cli.parsing import Flat
from selfpatch.config.schema import settings


@settings
class WeightsOptions:
    """Weights, and how they are read."""

    weights: str | None = None
    """Run directory, released checkpoint, .safetensors file, or timm:NAME. Evaluations and `show` also take baselines:
    untrained:RUN, baseline:mean-colour:P and baseline:raw-patch:P, P being the side of a patch in pixels."""
    load: Annotated[LoadConfig, Flat] = LoadConfig()

    def named_weights(self) -> str:
        """Return the weights.

        Raises:
            ValueError: none are named.
        """
        if self.weights is None:
            raise ValueError("no weights were named; give --weights with a run directory, a checkpoint or timm:NAME")
        return self.weights


@settings
class NetworkOptions(WeightsOptions):
    """Weights, how they are read, and the device they run on."""

    device: str = "auto"
    """Device to run on: `auto` (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps."""
