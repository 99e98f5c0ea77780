"""Values as people write them, in YAML and on a command line, as fields of a dataclass, with errors that teach."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin

import yaml


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}; a mapping of settings is needed")
    return values


def nested(options: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """`[("selfpatch.k", "2")]` -> `{"selfpatch": {"k": 2}}`; dashes in names read as underscores, values as YAML."""
    result: dict[str, Any] = {}
    for path, text in options:
        *sections, key = path.replace("-", "_").split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        try:
            place[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--{path} is {text!r}, which is no value; quote it if it is text") from None
    return result


def override_fields(record: Any, values: Mapping[str, Any], where: str) -> Any:
    kinds = field_types(type(record))
    changes = {}
    for key, value in values.items():
        if key not in kinds:
            raise ValueError(unknown_key(key, kinds, f"a setting of {where}"))
        name = key if where == "run" else f"{where}.{key}"
        current = getattr(record, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{name} is {value!r}; a mapping of settings is needed: {', '.join(field_types(type(current)))}"
                )
            changes[key] = override_fields(current, value, name)
        elif get_origin(kinds[key]) is Mapping or kinds[key] is Mapping:
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} is {value!r}; a mapping of names to values is needed")
            number = get_args(kinds[key])[1]
            changes[key] = {**current, **{k: convert(v, number, f"{name}.{k}") for k, v in value.items()}}
        else:
            changes[key] = convert(value, kinds[key], name)
    return dataclasses.replace(record, **changes)


def convert(value: Any, kind: Any, name: str) -> Any:
    """A value, as YAML reads it, as one of a field's type.

    Raises:
        ValueError: it is of another one.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return convert(value, next(k for k in inner if k is not type(None)), name)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{name} is {value!r}; use one of: {', '.join(map(str, inner))}")
        return value
    if origin is tuple and inner[-1:] == (Ellipsis,):
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{name} is {value!r}; a list of values is needed")
        return tuple(convert(v, inner[0], name) for v in value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            raise ValueError(f"{name} is {value!r}; {len(inner)} values are needed")
        return tuple(convert(v, k, name) for v, k in zip(value, inner, strict=True))
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-3, without a dot, as text
            return float(value)
        except ValueError:
            pass
    if kind is str and isinstance(value, str | int):
        return str(value)
    raise ValueError(f"{name} is {value!r}; a value of type {getattr(kind, '__name__', kind)} is needed")


def field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def unknown_key(key: object, known: Iterable[str], what: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return f"{key!r} is not {what}; {hint}"


def plain_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(v) for v in value]
    return value
