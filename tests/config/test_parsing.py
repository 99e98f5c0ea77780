"""YAML texts and dotted options as nested values."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.config.parsing import nested, parse_yaml

RECIPES = Path(__file__).parents[2] / "src" / "selfpatch" / "recipes"


def test_options_become_nested_values() -> None:
    options = [
        ("selfpatch.k", "2"),
        ("selfpatch.window", "all"),
        ("dino.num-prototypes", "64"),
        ("a.b.c", "[1, x]"),
        ("d.e", "true"),
    ]
    assert nested(options) == {
        "selfpatch": {"k": 2, "window": "all"},
        "dino": {"num_prototypes": 64},
        "a": {"b": {"c": [1, "x"]}},
        "d": {"e": True},
    }


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "just words"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here (is not valid YAML|holds a (list|str); write a mapping)"):
        parse_yaml(text, "here")
