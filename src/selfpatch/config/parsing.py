"""Text to nested values: YAML files, and options with dots in their names."""

from collections.abc import Iterable
from typing import Any

import yaml


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds; an empty text is an empty mapping.

    Raises:
        ValueError: the text is not valid YAML, or not a mapping; the error calls it `name`, e.g. its path.
    """
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}; write a mapping of settings")
    return values


def nested(options: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return options as nested values: `[("dino.hidden-dim", "64")]` -> `{"dino": {"hidden_dim": 64}}`.

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
            raise ValueError(f"--{path} is {text!r}, which is not valid YAML; put text in quotes") from None
    return values
