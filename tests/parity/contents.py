"""Content of a bundle's folder: the files in it and the names in each file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

DOCUMENTS = (".md", ".txt")
"""Endings of files that explain a bundle and hold no data."""


def entries(folder: Path) -> list[Path]:
    """Return the data files and subfolders of a folder, by name."""
    found = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    return [entry for entry in found if entry.suffix not in DOCUMENTS]


def contents(folder: Path) -> dict[str, frozenset[str]]:
    """Return the names in each data file or subfolder of a folder.

    Names of a JSON file are its keys at every depth; names of a safetensors file are its tensors. Other entries have
    no names.

    Raises:
        ValueError: a file is damaged.
    """
    return {entry.name: frozenset(_names(entry)) for entry in entries(folder)}


def has_contents(found: Mapping[str, frozenset[str]], wanted: Mapping[str, tuple[str, ...]]) -> bool:
    return all(file in found and found[file].issuperset(names) for file, names in wanted.items())


def _names(entry: Path) -> Iterator[str]:
    try:
        if entry.suffix == ".json":
            yield from _keys(json.loads(entry.read_text()))
        elif entry.suffix == ".safetensors":
            with safe_open(entry, "pt") as file:
                yield from file.keys()
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"cannot read {entry}: {error}") from None


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(child)
