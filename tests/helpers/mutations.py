"""Damage to files that programs and people write: values that fit nowhere, bytes that were flipped, cut or repeated."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300, math.nan, math.inf,
    -math.inf, "", " ", "0", "1e5", "NaN", "é", "\ud800", "\0", "a\nb", "[/red]", "../x", "/etc/passwd", "x" * 5000, [],
    [[]], {}, [0], [1, 2, 3], ["x"], {"a": 1}, {"counts": [], "size": [0, 0]},
]  # fmt: skip
ODD_BYTES = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b"\t", b"-", b"9" * 30, b"{", b"[" * 400, b'"',
    b":", b"*a", b"&a ",
]  # fmt: skip
"""Among them a byte order mark, the start of UTF-16, and signs of JSON, YAML and XML."""


@st.composite
def damaged_values(draw: st.DrawFn, value: Any) -> Any:
    """Return nested plain values of which up to three are replaced, removed, repeated or put elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 3))):
        parent, key = None, None
        current: Any = value
        while isinstance(current, dict | list) and current and (parent is None or draw(st.integers(0, 3))):
            keys = list(current) if isinstance(current, dict) else list(range(len(current)))
            parent, key = current, draw(st.sampled_from(keys))
            current = parent[key]
        if parent is None:
            return copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        match draw(st.integers(0, 5)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[draw(st.sampled_from(["id", "x", "", 3]))] = parent.pop(key)
            case 3:
                parent[key] = [copy.deepcopy(parent[key])]
            case _:
                parent[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes of which up to three places are replaced, cut out or repeated, or that end early."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 1, 1, 4, 30, 600]))
        match draw(st.integers(0, 4)):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + content[at + length :]
            case 2:
                content = content[:at] + content[at : at + length] * 2 + content[at + length :]
            case 3:
                content = content[:at] + draw(st.binary(max_size=8)) + content[at + length :]
            case _:
                content = content[:at] + draw(st.sampled_from(ODD_BYTES)) + content[at + length :]
    return content


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> bytes:
    """Return a JSON text whose values are damaged, and now and then its bytes as well."""
    changed = draw(damaged_values(value))
    content = json.dumps(changed).encode()
    return draw(damaged_bytes(content)) if draw(st.integers(0, 3)) == 0 else content
