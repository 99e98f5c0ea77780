"""Checks of JSON that other programs wrote, by the types of its records; the first fault is told in one sentence.

    class Truth(TypedDict):
        easy: list[int]
        bbx: NotRequired[list[Coordinate] | None]

    truth = check_json(read_json(path), Truth, str(path))

Types are strict: a number in quotes is no number, a boolean is no number, and NaN is refused where a type of this
module or pydantic's `FiniteFloat` stands. Keys that the records do not name are dropped.
"""

import functools
import reprlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import pydantic
from annotated_types import Ge, Le, Len

from selfpatch.config.schema import advice

T = TypeVar("T")
Location = tuple[int | str, ...]
"""Keys and indices that lead to a value."""

MAX_COORDINATE = 2.0**24
"""Largest coordinate in pixels, of which float32 still tells neighbours apart; no image comes near it."""
Coordinate = Annotated[pydantic.FiniteFloat, Ge(-MAX_COORDINATE), Le(MAX_COORDINATE)]
"""Coordinate in pixels."""
FourCoordinates = Annotated[list[Coordinate], Len(4, 4)]
"""Numbers of a box."""
Id = Annotated[int, Ge(-(2**63)), Le(2**63 - 1)]
"""Number of an image, a category or an annotation."""
LongList = Annotated[list[T], pydantic.FailFast()]
"""List of records, of which the first wrong one ends the check."""


def check_json(
    content: Any, kind: Any, name: str, entry: Callable[[Location], tuple[str, Location]] | None = None
) -> Any:
    """Return the content of a JSON file with the keys that a type names.

    Args:
        content: content of the file.
        kind: type of the content, such as a TypedDict.
        name: name of the file.
        entry: given the location of a fault, returns the name of the record that it is in, and the location in that
            record. If None, the location stands for itself.

    Raises:
        ValueError: a key is missing, or a value has the wrong type or is out of range.
    """
    try:
        return _adapter(kind).validate_python(content, strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
    location = _location(content, problem["loc"])
    record, below = ("", location) if entry is None else entry(location)
    where = f"{record} of {name}" if record else name
    if problem["type"] == "missing":
        place = f"{json_path(below)} of {where}" if below else where
        raise ValueError(f"{place} has no {problem['loc'][-1]!r}; add it, or get the file again")
    got = f"has the {json_path(below)}" if below else "holds"
    raise ValueError(f"{where} {got} {shown(problem['input'])}; {advice(problem)}")


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _location(content: Any, parts: Location) -> Location:
    """Return the parts that lead into the content; the others name members of a union, or a key that is missing."""
    path: list[int | str] = []
    for part in parts:
        is_index = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if is_index or (isinstance(content, dict) and part in content):
            content = content[part]
            path.append(part)
    return tuple(path)


def json_path(location: Location) -> str:
    """Return a location as it is written: `gnd[3].bbx`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def shown(value: Any) -> str:
    """Return a value of a JSON file, cut to a length that fits into a sentence."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else reprlib.repr(value)
