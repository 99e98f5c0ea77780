"""Settings as frozen dataclasses: types and ranges are checked by pydantic, errors are one sentence.

    @settings
    class KNNConfig:
        temperature: Annotated[float, Gt(0)] = 0.07
        "Softmax temperature of the votes."

Such a class is at once the schema of the command line (tyro), of YAML files and of Python arguments, and what a result
records. pydantic, not torch, is the heaviest import here, so that `--help` stays fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")
Cls = TypeVar("Cls", bound=type)

SPEED_ONLY = "speed only"
"""Metadata of a field that changes speed or memory but no number: `Annotated[int, Gt(0), SPEED_ONLY]`."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: Cls) -> Cls:
    """Make a class a frozen, keyword-only dataclass whose values are checked whenever one is made.

    Making one raises ValueError, in one sentence that says what was got and what is allowed.
    """
    checked = pydantic_dataclass(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid"))(cls)
    init = checked.__init__

    @functools.wraps(init)
    def init_in_a_sentence(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise ValueError(explain(error, checked)) from None

    checked.__init__ = init_in_a_sentence  # type: ignore[method-assign]
    return checked  # type: ignore[return-value]


def override(record: T, values: Mapping[str, Any], where: str = "") -> T:
    """Return a copy of a settings record with nested `values` in place of its own.

    Args:
        where: prefix of names in errors, e.g. `davis`.

    Raises:
        ValueError: a name is unknown, or a value has the wrong type or is out of range.
    """
    changes: dict[str, Any] = {}
    known = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    for name, value in values.items():
        path = f"{where}.{name}".lstrip(".")
        if name not in known:
            raise ValueError(unknown_name(path, name, known))
        current = getattr(record, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(f"{path} is {value!r}; give a mapping of settings")
            value = override(current, value, path)
        elif isinstance(current, Mapping) and isinstance(value, Mapping):
            value = {**current, **value}
        changes[name] = value
    try:
        return dataclasses.replace(record, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from None


def unknown_name(path: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for an unknown setting, with the nearest known name or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}"
    return f"{path} is not a setting; {hint}"


def explain(error: pydantic.ValidationError, cls: type) -> str:
    """Return pydantic's first complaint as one sentence: what was got, what is allowed."""
    names = {field.name for field in dataclasses.fields(cls)}
    problems = error.errors()
    first = problems[0]
    if first["type"] == "unexpected_keyword_argument":
        return unknown_name(str(first["loc"][0]), str(first["loc"][0]), names)
    if first["type"] == "value_error":  # raised by __post_init__, already a sentence
        return str(first["ctx"]["error"])
    # A union complains once for each of its members, behind the same location.
    place = [part for part in first["loc"] if isinstance(part, int) or part in names]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    same = [p for p in problems if p["loc"][: len(place)] == first["loc"][: len(place)]]
    wanted = " or ".join(dict.fromkeys(_wanted(problem) for problem in same))
    return f"{name} is {first['input']!r}; {wanted}"


def _wanted(problem: Any) -> str:
    """Return what one complaint of pydantic's asks for."""
    context = problem.get("ctx", {})
    match problem["type"]:
        case "greater_than":
            return f"use a number above {context['gt']:g}"
        case "greater_than_equal":
            return f"use {context['ge']:g} or more"
        case "less_than":
            return f"use a number below {context['lt']:g}"
        case "less_than_equal":
            return f"use {context['le']:g} or less"
        case "literal_error":
            return f"use one of: {context['expected']}".replace(" or ", ", ").replace("'", "")
        case _:
            return str(problem["msg"][0].lower() + problem["msg"][1:]).replace("input should be", "it must be")


def plain(record: Any) -> Any:
    """Return a settings record, or any value in one, as plain nested values that YAML and JSON write."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): plain(value) for key, value in record.items()}
    return [plain(value) for value in record] if isinstance(record, list | tuple) else record
