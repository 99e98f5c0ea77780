"""Agreement of a described network with the tensors of its file, judged before the network takes any memory."""

from collections.abc import Mapping

import torch
from torch import Tensor

from selfpatch.core.text import counted, one_line
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig

CANNOT_BE_BUILT = (ValueError, AssertionError, RuntimeError, TypeError, OverflowError, IndexError, ArithmeticError)
"""Errors of building a network from an unusual description."""
_ADVICE = "download it again, or give other weights"


def check_architecture(config: AnyBackboneConfig, state: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError unless a configuration describes the tensors of a state dict with our keys.

    A network is built on torch's meta device, where sizes cost nothing. Tensors that a loader may leave out or adapt
    may be missing, but not most of them.
    """
    if config.num_layers > len(state):
        raise ValueError(
            f"{source} describes {counted(config.num_layers, 'layer')}, but it holds {counted(len(state), 'tensor')}; "
            f"{_ADVICE}"
        )
    try:
        with torch.device("meta"):
            expected = build_backbone(config).state_dict()
    except CANNOT_BE_BUILT as error:
        raise ValueError(f"{source} describes a network that cannot be built ({one_line(error)}); {_ADVICE}") from None
    shapes = {f"backbone.{key}": tensor.shape for key, tensor in expected.items()}
    for key, shape in shapes.items():
        if key in state and state[key].shape != shape:
            raise ValueError(
                f"{source} is of another architecture than is described: {key} is {list(state[key].shape)} there and "
                f"{list(shape)} here; {_ADVICE}"
            )
    found = sum(key in state for key in shapes)
    if 2 * found < len(shapes):
        raise ValueError(f"{source} holds {found} of {counted(len(shapes), 'tensor')} of its network; {_ADVICE}")
