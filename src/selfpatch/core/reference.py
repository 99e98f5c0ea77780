"""Switch between fast paths and their plain references.

    @fast_path_of(similarity_reference)
    def similarity(...): ...

    with use_references():
        similarity(...)  # similarity_reference(...)

This runs the whole training step on the references, for tests and benchmarks.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_plain = False


def using_references() -> bool:
    """Return whether references replace the fast paths."""
    return _plain


@contextlib.contextmanager
def use_references() -> Iterator[None]:
    """Run the reference of every function marked by `fast_path_of`; unfuse attention and optimizers too."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def fast_path_of(reference: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function or method as the fast path of a reference that takes the same arguments."""

    def mark(fast: Callable[P, R]) -> Callable[P, R]:
        @wraps(fast)
        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            return reference(*args, **kwargs) if _plain else fast(*args, **kwargs)

        return either

    return mark
