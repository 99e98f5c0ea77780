"""How the presets of an evaluation, the protocols that have a name, differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any


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


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, tuple):
        return str(value)
    cells = [_cell(part) for part in value]
    return " ".join(cells) if len(cells) < 4 else f"{cells[0]} {cells[1]} ... {cells[-1]}"
