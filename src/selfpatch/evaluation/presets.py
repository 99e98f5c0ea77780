"""The presets of an evaluation, the protocols that have a name: one with settings of one's own, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from selfpatch.evaluation.config import EvaluationConfig

Preset = TypeVar("Preset")


def resolve_preset(presets: Mapping[str, Preset], name: str, /, *, of: str = "", **given: Any) -> Preset:
    """The preset of that name with the settings that are given, those that are not None, in place of its own.

    Args:
        presets: dataclasses of one type by name.
        of: what they are presets of, where an evaluation has several kinds.
        given: fields of a preset; of sequences it has tuples.

    Raises:
        ValueError: there is no such preset, or it refuses a setting.
    """
    if name not in presets:
        kind = f" of {of}" if of else ""
        raise ValueError(f"there is no preset {name!r}{kind}; use one of: {', '.join(presets)}")
    own = {field: value for field, value in given.items() if value is not None}
    tuples = {field: tuple(v) for field, v in own.items() if isinstance(v, Sequence) and not isinstance(v, str)}
    return replace(presets[name], **{**own, **tuples})  # type: ignore[type-var]


def describe_presets(presets: Mapping[str, Any]) -> str:
    """A table: a column a preset, a line each setting in which they differ.

    Args:
        presets: dataclasses of one type by name.
    """
    columns = {name: asdict(preset) for name, preset in presets.items()}
    settings = next(iter(columns.values()))
    rows = [["", *columns]]
    for setting in settings:
        cells = [_cell(column[setting]) for column in columns.values()]
        if len(set(cells)) > 1:
            rows.append([setting, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def preset_tables(config: type[EvaluationConfig], name: str) -> str:
    """Return how the presets of an evaluation, or of each of its variants, differ.

    Args:
        config: settings class of the evaluation.
        name: name of the evaluation.

    Raises:
        ValueError: the evaluation has no presets.
    """
    variants = {"": config} if config.variants is None else config.variants[1]
    tables = [
        f"{variant}\n{describe_presets({p: cls.from_settings({'preset': p}) for p in cls.presets})}".strip()
        for variant, cls in variants.items()
        if cls.presets
    ]
    if not tables:
        raise ValueError(f"{name} has no presets; its defaults are the published protocol")
    return "\n\n".join(tables)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, tuple):
        return str(value)
    cells = [_cell(part) for part in value]
    return " ".join(cells) if len(cells) < 4 else f"{cells[0]} {cells[1]} ... {cells[-1]}"
