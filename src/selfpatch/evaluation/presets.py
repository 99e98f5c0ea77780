"""Tables of the presets of an evaluation: its named protocols, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from selfpatch.evaluation.config import EvaluationConfig


def preset_tables(config: type[EvaluationConfig], name: str) -> str:
    """Return how the presets of an evaluation, or of each of its variants, differ.

    Raises:
        ValueError: the evaluation has no presets.
    """
    variants = {"": config} if config.variants is None else config.variants[1]
    tables = []
    for variant, cls in variants.items():
        if cls.presets:
            table = describe_presets({preset: cls.from_settings({"preset": preset}) for preset in cls.presets})
            tables.append(f"{variant}\n{table}".lstrip("\n"))
    if not tables:
        raise ValueError(f"{name} has no presets; its defaults are the published protocol")
    return "\n\n".join(tables)


def describe_presets(presets: Mapping[str, Any]) -> str:
    """Return a table with a column for each preset and a line for each setting in which they differ."""
    columns = {name: asdict(preset) for name, preset in presets.items()}
    rows = [["", *columns]]
    for setting in [name for name in next(iter(columns.values())) if name != "preset"]:
        cells = [_cell(column[setting]) for column in columns.values()]
        if len(set(cells)) > 1:
            rows.append([setting, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, tuple):
        return str(value)
    cells = [_cell(part) for part in value]
    return " ".join(cells) if len(cells) < 4 else f"{cells[0]} {cells[1]} ... {cells[-1]}"
