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


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "here gives 'a' twice, in lines 1 and 3; keep one"),
        ("{a: {b: 1, b: 1}}", "here gives 'b' twice, in line 1"),
        (LAUGHS, "here holds more than 50000 values once its aliases are written out"),
        (LAUGHS.replace("[*", "{<<: [*").replace("*a]", "*a]}"), "here (holds more than 50000|is not valid YAML)"),
        ("a: &a [*a]", "here has an alias of what contains it"),
        ("a: &a {b: *a}", "here has an alias of what contains it"),
        (f"a: {'[' * 3000}", "here is nested too deeply"),
        ("x" * 200_001, "here has 200001 characters"),
        ("a: !!bool perhaps", "a value does not fit its type"),
        ("a: 2001-13-45", "a value does not fit its type"),
        ("a: !!int ''", "a value does not fit its type"),
        (f"a: {'9' * 5000}", "a value does not fit its type"),
        ("a: !!python/object/apply:os.system [ls]", "here is not valid YAML"),
        ("a: \udcff", "here is not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text, "here")


def test_harmless_aliases_are_read() -> None:
    assert parse_yaml("a: &a {k: 1}\nb: *a\nc: {<<: *a, l: 2}", "here") == {
        "a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([("a.b", "1"), ("a.b.c", "2")], "--a.b.c is below 'b', which is given a value itself"),
        ([("a.b.c", "2"), ("a.b", "1")], "--a.b is a value, but others are below it"),
        ([("a.b", "[1")], r"--a.b is '\[1', which cannot be read .* put text in quotes"),
        ([("a.b", "&a [*a]")], "--a.b has an alias of what contains it"),
    ],
)
def test_options_that_cannot_be_read_are_refused(options: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nested(options)
