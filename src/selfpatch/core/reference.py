"""Every fast path stands beside a plain reference; here all of them can be switched to their references at once.

    @fast_path_of(similarity_reference)
    def similarity(...): ...

    with use_references():
        similarity(...)  # similarity_reference(...)

So the whole training step can be run plainly: as the oracle of the fast one, and as what its speed is measured against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_plain = False


def using_references() -> bool:
    """Whether references stand in for fast paths."""
    return _plain


@contextlib.contextmanager
def use_references() -> Iterator[None]:
    """Run every function marked by `fast_path_of` as its reference, attention unfused, and optimizers one parameter at
    a time."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def fast_path_of(reference: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a function or method as the fast path of a reference that takes the same arguments."""

    def mark(fast: Callable[P, R]) -> Callable[P, R]:
        @wraps(fast)
        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            return reference(*args, **kwargs) if _plain else fast(*args, **kwargs)

        return either

    return mark
