"""Cost of the keys that a pickle may make: a deep nest of tuples that share their parts takes years to hash."""

import pickletools
from typing import Any, BinaryIO

MAX_LEAVES = 10_000
"""Largest number of values of a tuple, those of the tuples in it included; a state of Python's generator has 627."""

_MARK = -1
_PUTS = ("BINPUT", "LONG_BINPUT", "PUT")
_GETS = ("BINGET", "LONG_BINGET", "GET")


def has_costly_tuples(file: BinaryIO) -> bool:
    """Return whether the next pickle of a file makes a tuple of more than `MAX_LEAVES` values; nothing is unpickled.

    ::

        for each operation on the stack: the number of values of what it makes is
            a tuple:  1 + those of its elements
            else:     1, as nothing else is hashed by its content

    The file is then at the end of the pickle.

    Raises:
        ValueError: the bytes are no pickle.
    """
    stack: list[int] = []
    memo: dict[Any, int] = {}
    costly = False
    try:
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name in _PUTS:
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _GETS:
                stack.append(memo[argument])
            elif name == "MARK":
                stack.append(_MARK)
            else:
                used = _pop(stack, operation.stack_before)
                leaves = 1 + sum(used) if "TUPLE" in name else 1
                costly = costly or leaves > MAX_LEAVES
                stack += [min(leaves, MAX_LEAVES + 1)] * len(operation.stack_after)
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"no pickle: {error}") from None
    return costly


def _pop(stack: list[int], before: list[pickletools.StackObject]) -> list[int]:
    """Remove what an operation takes from the stack, and return it without the mark."""
    if pickletools.markobject not in before:
        count = len(before)
        used = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return used
    start = len(stack) - 1 - stack[::-1].index(_MARK)
    used = stack[start + 1 :]
    below = before.index(pickletools.markobject)
    del stack[start - below :]
    return used
