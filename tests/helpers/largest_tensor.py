"""Size of the largest tensor that a function creates."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Context that measures every tensor created in it.

    Args:
        operators: operators to measure, e.g. torch.ops.aten.mm.default; if none are given, all.
    """

    def __init__(self, *operators: Any) -> None:
        super().__init__()
        self.operators = operators
        self.elements = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out) if not self.operators or func in self.operators else ():
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out
