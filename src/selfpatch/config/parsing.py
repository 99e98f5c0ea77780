"""Text to nested values: YAML files, and options with dots in their names."""

from collections.abc import Iterable
from typing import Any

import yaml

from selfpatch.core.text import shown

MAX_CHARACTERS = 200_000
"""Largest length of a YAML text; recipes, suites and studies have a few thousand characters."""
MAX_VALUES = 50_000
"""Largest number of values of a YAML text, with each alias counted as a copy of what it stands for."""


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds; an empty text is an empty mapping.

    Raises:
        ValueError: the text cannot be used (`yaml_values`), or holds no mapping.
    """
    values = yaml_values(text, name)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}; write a mapping of settings")
    return values


def yaml_values(text: str, name: str) -> Any:
    """Return the plain values that a YAML text holds.

    Aliases may be used, but an alias within its own anchor, or aliases of aliases that stand for more than MAX_VALUES
    values ("a billion laughs"), are refused before anything is built from them.

    Args:
        text: the text.
        name: name of the text in errors, e.g. its path.

    Raises:
        ValueError: the text is not valid YAML, gives a key twice, is nested too deeply or too large.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(text)} characters; settings have at most {MAX_CHARACTERS}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, name, {})
        return _construct(loader, node, name)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply; write settings at most a few levels deep") from None


def _construct(loader: yaml.SafeLoader, node: yaml.Node, name: str) -> Any:
    try:
        return loader.construct_document(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # as in `!!bool perhaps`
        raise ValueError(f"{name} is not valid YAML: a value does not fit its type ({error})") from None


def _count_values(node: yaml.Node, name: str, counts: dict[int, int | None]) -> int:
    """Return the number of values below a node, itself included; `counts` holds those of the nodes met so far.

    Raises:
        ValueError: there are too many, a node contains itself, or a mapping gives a key twice.
    """
    if id(node) in counts:
        known = counts[id(node)]
        if known is None:
            raise ValueError(f"{name} has an alias of what contains it (line {_line(node)}); write the values out")
        return known
    counts[id(node)] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        below = node.value
    elif isinstance(node, yaml.MappingNode):
        _refuse_twice([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)], name)
        below = [one for pair in node.value for one in pair]
    total = 1 + sum(_count_values(one, name, counts) for one in below)
    if total > MAX_VALUES:
        raise ValueError(f"{name} holds more than {MAX_VALUES} values once its aliases are written out; use fewer")
    counts[id(node)] = total
    return total


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _refuse_twice(keys: list[yaml.ScalarNode], name: str) -> None:
    """Raise ValueError if a mapping gives a key twice, of which PyYAML would silently take the last."""
    first: dict[tuple[str, str], yaml.ScalarNode] = {}
    for key in keys:
        before = first.setdefault((key.tag, key.value), key)
        if before is not key:
            lines = (
                f"in line {_line(key)}" if _line(key) == _line(before) else f"in lines {_line(before)} and {_line(key)}"
            )
            raise ValueError(f"{name} gives {key.value!r} twice, {lines}; keep one")


def nested(options: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return options as nested values: `[("dino.hidden-dim", "64")]` -> `{"dino": {"hidden_dim": 64}}`.

    Raises:
        ValueError: a value is not valid YAML, or an option is both a value and a section.
    """
    values: dict[str, Any] = {}
    for path, text in options:
        *sections, key = path.replace("-", "_").split(".")
        section_values = values
        for section in sections:
            section_values = section_values.setdefault(section, {})
            if not isinstance(section_values, dict):
                raise ValueError(f"--{path} is below {section!r}, which is given a value itself; leave one of them out")
        if isinstance(section_values.get(key), dict):
            raise ValueError(f"--{path} is a value, but others are below it; leave one of them out")
        try:
            section_values[key] = yaml_values(text, f"--{path}")
        except ValueError as error:
            raise ValueError(
                f"--{path} is {shown(text, 60)}, which cannot be read ({error}); put text in quotes"
            ) from None
    return values
