"""Cache of constant tensors that depend on plain arguments, such as tables of neighbours and interpolation weights."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

P = ParamSpec("P")
R = TypeVar("R")


def cached_constant(function: Callable[P, R]) -> Callable[P, R]:
    """Cache the last 64 results of a function of hashable arguments that returns tensors.

    The tensors are real ones that can take part in a later backward pass, also if the first call is made in inference
    mode or while costs are measured (`core.cost`). A compiler traces the function instead, as its arguments may be
    symbols.
    """

    @lru_cache(maxsize=64)
    def real(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), unset_fake_temporarily():
            return function(*args, **kwargs)

    @wraps(function)
    def constant(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    return constant
