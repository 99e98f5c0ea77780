"""Names of weights; imports nothing heavy, so that the command line can check them first."""

import os

TIMM = "timm:"
"""Prefix of a model of timm with its weights."""
HUB = "hf:"
"""Prefix of a repository of the Hugging Face Hub."""


def require_weights(source: str) -> None:
    """Raise ValueError if weights are a path at which there is nothing."""
    # Unlike Path.exists, os.path.exists is False for names that no file can have.
    if not source.startswith((TIMM, HUB)) and not os.path.exists(source):
        raise ValueError(
            f"no weights at {source!r}; use a run directory, a checkpoint file, a .safetensors file, {TIMM}NAME "
            f"or {HUB}OWNER/NAME"
        )
