"""Keys of ConvNeXts in the released files of ConvNeXt, its V2 and DINOv3, and in timm's, for ours, and back."""

import re
from collections.abc import Mapping

from torch import Tensor

SPELLINGS = [
    (r"\bdownsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"\bdownsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"\bstages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"\bhead\.norm\.", "norm."),  # timm
]
"""Parts of keys that others name differently; all apply."""

_FIRST_LAYER = re.compile(r"(?:.+\.)?(?:downsample_layers\.0\.0|stem\.0)\.weight")
_ANY_BLOCK = re.compile(r".+\.(?:dwconv|conv_dw)\.weight")


def from_any(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a ConvNeXt under the keys of our trunk, those of any other network as they are."""
    if not (any(map(_FIRST_LAYER.fullmatch, state)) and any(map(_ANY_BLOCK.fullmatch, state))):
        return dict(state)
    renamed = {}
    for key, tensor in state.items():
        for pattern, spelling in SPELLINGS:
            key = re.sub(pattern, spelling, key)
        if re.search(r"\.mlp\.fc[12]\.weight$", key) and tensor.ndim == 4:  # a convolution of one pixel
            tensor = tensor.flatten(1)
        renamed[key] = tensor.flatten() if ".mlp.grn." in key else tensor
    return renamed


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of our trunk under the keys of timm's `ConvNeXt`."""
    return {re.sub(r"^norm\.", "head.norm.", key): tensor for key, tensor in state.items()}
