"""Switch between fast paths and their references."""

from __future__ import annotations

import pytest

from selfpatch.core.reference import fast_path_of, use_references, using_references


def slow(x: int, *, add: int = 0) -> str:
    return f"slow {x + add}"


@fast_path_of(slow)
def fast(x: int, *, add: int = 0) -> str:
    """Add two numbers."""
    return f"fast {x + add}"


def test_the_reference_replaces_the_fast_path_inside_the_switch_only() -> None:
    assert fast(1, add=2) == "fast 3"
    with use_references():
        assert using_references()
        assert fast(1, add=2) == "slow 3"
        with use_references():
            assert fast(1) == "slow 1"
        assert fast(1) == "slow 1", "the outer switch still holds"
    assert not using_references()
    assert fast(1) == "fast 1"


def test_an_error_inside_the_switch_resets_it() -> None:
    with pytest.raises(RuntimeError, match="stop"), use_references():
        raise RuntimeError("stop")
    assert fast(1) == "fast 1"


def test_a_fast_path_keeps_its_name_and_documentation() -> None:
    assert (fast.__name__, fast.__doc__) == ("fast", "Add two numbers.")
