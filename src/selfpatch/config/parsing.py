"""Text to nested values: YAML files, and options with dots in their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Args:
        text: the YAML text; an empty one is an empty mapping.
        name: name of the text in errors, e.g. its path.

    Raises:
        ValueError: the text is not valid YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}; write a mapping of settings")
    return values


def nested(options: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return options as nested values: `[("selfpatch.k", "2")]` -> `{"selfpatch": {"k": 2}}`.

    Dashes in names are read as underscores, values as YAML.

    Raises:
        ValueError: a value is not valid YAML.
    """
    values: dict[str, Any] = {}
    for path, text in options:
        *sections, key = path.replace("-", "_").split(".")
        section_values = values
        for section in sections:
            section_values = section_values.setdefault(section, {})
        try:
            section_values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--{path} is {text!r}, which is no value; quote it if it is text") from None
    return values
