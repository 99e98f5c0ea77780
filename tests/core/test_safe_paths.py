"""Names from data sets stay inside their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.core.safe_paths import path_below


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "./a b", "a..b", "..a", "ab:c", "000-2007:cat", "ü\t", "x" * 255])
def test_names_below_a_folder_are_paths(name: str) -> None:
    assert path_below(Path("data"), name, "a list") == Path("data") / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("C:\\a", "is an absolute path"),
        ("c:a", "is an absolute path"),
        ("\\\\host\\share\\a", "is an absolute path"),
        ("../a", "leads out of its folder"),
        ("a/../../b", "leads out of its folder"),
        ("a\\..\\b", "leads out of its folder"),
        ("", "is no name of a file"),
        ("./", "is no name of a file"),
        ("a\0b", "has a zero byte"),
        ("a/" + "x" * 256, "is longer than 255 bytes"),
        ("\ud800", "is no valid text"),
        (7, "is no text"),
        (None, "is no text"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_names_that_leave_the_folder_are_refused(name: Any, reason: str, nested: bool) -> None:
    if not nested and isinstance(name, str) and name.startswith("a/x"):
        reason = "has a separator"
    with pytest.raises(ValueError, match=rf"^line 3 of val.txt names .*, which {reason}.*; it should be .* data$"):
        path_below(Path("data"), name, "line 3 of val.txt", nested=nested)


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a/", "./a"])
def test_one_name_has_no_separator(name: str) -> None:
    with pytest.raises(ValueError, match="has a separator of folders; it should be the name of one entry of data"):
        path_below(Path("data"), name, "a list", nested=False)


@given(st.text(st.sampled_from("./\\aC:\0\ud800"), max_size=12), st.booleans())
def test_no_name_leads_outside(name: str, nested: bool) -> None:
    try:
        path = path_below(Path("/data/set"), name, "a list", nested=nested)
    except ValueError:
        return
    parts = path.parts
    assert parts[:3] == ("/", "data", "set")
    assert len(parts) > 3
    assert ".." not in parts
    assert nested or len(parts) == 4
