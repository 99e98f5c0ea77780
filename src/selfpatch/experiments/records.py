"""JSON records of requests, to decide whether finished work can be kept."""

import json
import math
from pathlib import Path
from typing import Any

from selfpatch.core import text_files
from selfpatch.core.atomic_io import write_atomically


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing, cut off or none."""
    try:
        return text_files.read_json(path)
    except ValueError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def without_nan(value: Any) -> Any:
    """Return a nested plain value with None in place of numbers that strict JSON has not: nan and infinities."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> Any:
    """Return a value as it would be read from a JSON file, so that both can be compared."""
    return json.loads(json.dumps(value, default=str))


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return a phrase for each difference between two nested plain values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*now, *before])
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if before == now else [f"{name.removeprefix('settings.')} is {before} there and {now} now"]
