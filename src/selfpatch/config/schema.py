"""Settings as frozen dataclasses: types and ranges are checked by pydantic, errors are one sentence.

    @settings
    class KNNConfig:
        temperature: Annotated[float, Gt(0)] = 0.07
        "Softmax temperature of the votes."

Such a class is at once the schema of the command line (tyro), of YAML files and of Python arguments, and what a result
records. pydantic, not torch, is the heaviest import here, so that `--help` stays fast.
"""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, LiteralString, TypeVar, dataclass_transform, get_type_hints

import pydantic
from annotated_types import Ge, Le, Lt, MinLen
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError

from selfpatch.core.text import shown

T = TypeVar("T")
Cls = TypeVar("Cls", bound=type)

Fraction = Annotated[float, Ge(0), Le(1)]
"""Number between 0 and 1, both included."""

SPEED_ONLY = "speed only"
"""Metadata of a field that changes speed or memory but no number: `Annotated[int, Gt(0), SPEED_ONLY]`."""

Seed = Annotated[int, Ge(0), Lt(2**63)]
"""Seed of random draws, as torch takes it."""

Workers = Annotated[int, Ge(0), Le(1024), SPEED_ONLY]
"""Number of loader processes; thousands would bring the machine down before anything could be said."""


def _in_any_encoding(value: Any, check: pydantic.ValidatorFunctionWrapHandler) -> Any:
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:  # the bytes of a file name, which need not be UTF-8; pydantic's texts have to be
        return value
    return check(value)


Name = Annotated[str, MinLen(1)]
"""Text that names something. An empty one, as from an unset variable of a shell, would stand for this folder."""

DataName = Annotated[Name, pydantic.WrapValidator(_in_any_encoding)]
"""Name of a file or folder that is only read by this program; torch and safetensors take names in UTF-8 alone."""


def _advising(advice: LiteralString) -> pydantic.WrapValidator:
    """Return a validator that gives one piece of advice, where a union would give one for each of its members."""

    def validate(value: Any, check: pydantic.ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except pydantic.ValidationError:
            raise PydanticCustomError("advice", advice) from None

    return pydantic.WrapValidator(validate)


Size = Annotated[
    pydantic.PositiveInt | tuple[pydantic.PositiveInt, pydantic.PositiveInt],
    _advising("use one whole number above 0, or two: height and width"),
]
"""Size of an image or a crop in pixels: the side of a square, or height and width."""


_Points = Annotated[int, Ge(2)]
PointGrid = Annotated[
    _Points | tuple[_Points, _Points], _advising("use 2 or more, or two such whole numbers: rows and columns")
]
"""Grid of points: its side, or rows and columns."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Return a size as (height, width), or a grid as (rows, columns)."""
    return (size, size) if isinstance(size, int) else size


def check_sides(size: Size, patch_size: int) -> None:
    """Raise ValueError if a patch size does not divide the sides of an image."""
    for side in height_and_width(size):
        if side % patch_size or side < patch_size:
            nearest = max(patch_size, round(side / patch_size) * patch_size)
            raise ValueError(
                f"patch size {patch_size} does not divide the image side {side}; use a multiple of {patch_size}, "
                f"e.g. {nearest}"
            )


def size_text(size: Size) -> str:
    """Return a size as `224`, or as `224 x 448` if height and width differ."""
    return " x ".join(map(str, dict.fromkeys(height_and_width(size))))


_RULES = pydantic.ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True, use_attribute_docstrings=True)
_ADVICE = {
    "greater_than": "use a number above {gt:g}",
    "greater_than_equal": "use {ge:g} or more",
    "less_than": "use a number below {lt:g}",
    "less_than_equal": "use {le:g} or less",
    "finite_number": "use a finite number",
    **dict.fromkeys(["int_type", "int_parsing", "int_from_float"], "use a whole number"),
    **dict.fromkeys(["float_type", "float_parsing"], "use a number"),
    **dict.fromkeys(["bool_type", "bool_parsing"], "use true or false"),
    **dict.fromkeys(["mapping_type", "dict_type", "dataclass_type"], "use a mapping of names to values"),
    "string_type": "use text",
    "extra_forbidden": "it is of another version of selfpatch",
    "string_unicode": "use a name in UTF-8, i.e. rename it",
    **dict.fromkeys(["tuple_type", "list_type"], "use a list of values, as [a, b]"),
    "too_short": "use {min_length} or more values",
    "too_long": "use {max_length} values",
    "string_too_short": "name something, or leave it out",
}
"""Advice for each of pydantic's types of error, filled in with its context."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: Cls) -> Cls:
    """Make a class a frozen, keyword-only dataclass whose invalid values raise a ValueError of one sentence.

    If the class has `presets`, mappings of settings by the values of its field `preset`, what is not given has the
    value of the preset.
    """
    made = pydantic_dataclass(frozen=True, kw_only=True, config={**_RULES, "extra": "forbid"})(cls)
    init, fields = made.__init__, dataclasses.fields(made)
    presets: Mapping[str, Mapping[str, Any]] = getattr(made, "presets", {})
    for field in fields:
        # tyro takes help from the metadata; from the string below the field it would keep the breaks between lines.
        if text := made.__pydantic_fields__[field.name].description:
            field.metadata = MappingProxyType({"help": " ".join(text.split())})

    @functools.wraps(init)
    def init_in_a_sentence(self: Any, *args: Any, **kwargs: Any) -> None:
        preset = kwargs.get("preset")
        kwargs = {**(presets.get(preset, {}) if isinstance(preset, str) else {}), **kwargs}
        try:
            init(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise ValueError(_sentence(error, kwargs, [field.name for field in fields]).lstrip(".")) from None
        for name, value in kwargs.items():
            _refuse_misread(name, value, getattr(self, name))

    made.__init__ = init_in_a_sentence  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def _refuse_misread(name: str, given: Any, kept: Any) -> None:
    """Raise ValueError for a number read from a boolean, a boolean read from anything else, and beyond int64."""
    if isinstance(given, list | tuple):
        pairs = list(zip(given, kept, strict=True))
    else:
        is_mapping = isinstance(given, Mapping) and isinstance(kept, Mapping)
        pairs = list(zip(given.values(), kept.values(), strict=True)) if is_mapping else [(given, kept)]
    for old, new in pairs:
        if isinstance(old, bool) != isinstance(new, bool):
            raise ValueError(
                f"{name} is {shown(given)}; use {'true or false' if isinstance(new, bool) else 'a number'}"
            )
        if isinstance(new, int) and abs(new) >= 2**63:
            raise ValueError(f"{name} is {shown(given)}; use a number of at most 18 digits")


def override(record: T, values: Mapping[str, Any], where: str = "") -> T:
    """Return a copy of a settings record, overridden by nested `values` from YAML or Python.

    Raises:
        ValueError: a name is unknown, or a value has the wrong type or is out of range. Names in the error have the
            prefix `where`, e.g. `davis`.
    """
    changes: dict[str, Any] = {}
    known = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    for name, value in values.items():
        path = f"{where}.{name}".lstrip(".")
        if name not in known:
            raise ValueError(unknown_name(path, str(name), known))
        current = getattr(record, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(f"{path} is {shown(value)}; give a mapping of settings")
            value = override(current, value, path)
        elif isinstance(current, Mapping) and isinstance(value, Mapping):
            value = {**current, **value}
        changes[name] = value
    try:
        return dataclasses.replace(record, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where}.{error}".lstrip(".")) from None


def unknown_name(path: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for an unknown setting, with the nearest known name or all of them."""
    known = list(known)
    meant = close_match(name, known)
    hint = f"did you mean {meant!r}?" if meant else f"known are: {', '.join(known)}"
    return f"{path} is not a setting; {hint}"


def recorded(config: Any) -> dict[str, Any]:
    """Return the settings that decide numbers, as plain values: all but those marked SPEED_ONLY."""
    hints = get_type_hints(type(config), include_extras=True)
    speed_only = {name for name, hint in hints.items() if SPEED_ONLY in getattr(hint, "__metadata__", ())}
    return {name: value for name, value in plain(config).items() if name not in speed_only}


def close_match(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped one most resembles, or None if it resembles none."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def checked(value: Any, kind: Any, name: str) -> Any:
    """Return a value, as YAML or Python gives it, as one of a type, which may be `Annotated` with a range.

    Raises:
        ValueError: the value has another type or is out of range; the error calls it `name`.
    """
    try:
        kept = pydantic.TypeAdapter(kind, config=_RULES).validate_python(value)
    except pydantic.ValidationError as error:
        raise ValueError(name + _sentence(error, value)) from None
    _refuse_misread(name, value, kept)
    return kept


def _sentence(error: pydantic.ValidationError, given: Any, known: Iterable[str] = ()) -> str:
    """Return pydantic's first complaint about the given values as one sentence: what was got, what is allowed."""
    problems = error.errors()
    first = problems[0]
    location, problem = first["loc"], first["type"]
    if problem == "value_error":  # raised by __post_init__, already a sentence
        return str(first["ctx"]["error"])
    if problem == "unexpected_keyword_argument":
        return unknown_name(str(location[0]), str(location[0]), known)
    if problem == "missing" and isinstance(location[0], str) and location[0] not in given:
        return f"{location[0]} is not given; it has no default"
    path: list[int | str] = []
    value = given
    for part in location:  # parts that do not lead into the given values name members of a union
        is_index = isinstance(part, int) and isinstance(value, list | tuple) and part < len(value)
        if is_index or (isinstance(value, Mapping) and part in value):
            value = value[part]
            path.append(part)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    if problem == "missing":  # a tuple that is too short lacks one value in each problem
        return f"{name} is {shown(list(first['input']))}; use {len(first['input']) + len(problems)} values"
    # A union complains once for each of its members, behind the same location.
    same = [advice(other) for other in problems if other["loc"][: len(path)] == location[: len(path)]]
    return f"{name} is {shown(first['input'])}; {' or '.join(dict.fromkeys(same))}"


def advice(problem: Any) -> str:
    """Return what to do about one of pydantic's problems."""
    context = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        return f"use one of: {context['expected']}".replace(" or ", ", ").replace("'", "")
    if problem["type"] in _ADVICE:
        return _ADVICE[problem["type"]].format(**context)
    return str(problem["msg"][0].lower() + problem["msg"][1:]).replace("input should be", "it must be")


def plain(record: Any) -> Any:
    """Return a settings record, or any value in one, as plain nested values that YAML and JSON write."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): plain(value) for key, value in record.items()}
    return [plain(value) for value in record] if isinstance(record, list | tuple) else record


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by names such as `crops.global_size`; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found
