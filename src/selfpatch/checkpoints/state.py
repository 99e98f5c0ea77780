"""What an exported file holds."""

from __future__ import annotations

import json

from torch import Tensor

from selfpatch.models.encoder import BranchEncoder


def export_state(encoder: BranchEncoder) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of an exported file. The trunk's keys are timm's own, so that timm loads them as they
    are; those of the pool begin with `pool.`."""
    state = {k.removeprefix("backbone.trunk."): v.contiguous() for k, v in encoder.state_dict().items()}
    shape = encoder.backbone.config
    return state, {"format": "pt"} | {"shape": json.dumps(shape.to_dict())}
