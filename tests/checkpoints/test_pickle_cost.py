"""Pickles whose keys would take years to hash are told without unpickling them."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.checkpoints.pickle_cost import MAX_LEAVES, has_costly_tuples
from selfpatch.checkpoints.read_file import read_file


def nest(depth: int, width: int) -> Any:
    value: Any = (1,)
    for _ in range(depth):
        value = (value,) * width
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("value", "costly"),
    [
        (nest(60, 2), True),
        (nest(40, 3), True),
        (nest(3, 1000), True),
        ([nest(60, 2)], True),
        (tuple(range(MAX_LEAVES + 1)), True),
        (nest(5, 3), False),
        (tuple(range(MAX_LEAVES - 1)), False),
        (random.Random(0).getstate(), False),
        ({"a": [1.5, None, b"x", {"b": (1, 2, 3)}, {4}, [[[]]]], (1, 2): True}, False),
        ([list(range(5000))] * 100, False),
        ({str(i): (i, i) for i in range(20_000)}, False),
    ],
    ids=lambda value: None if isinstance(value, bool) else type(value).__name__,
)
def test_large_tuples_are_told(value: Any, costly: bool, protocol: int) -> None:
    file = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    assert has_costly_tuples(file) == costly
    assert file.read() == b"rest"


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x02", b"\x80\x02q\x00.", b"\x80\x02h\x07.", b"\x80\x02t.", b"?"]
)
def test_other_bytes_are_no_pickle(content: bytes) -> None:
    with pytest.raises(ValueError, match="no pickle"):
        has_costly_tuples(io.BytesIO(content))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_them_is_refused(tmp_path: Path, zipped: bool) -> None:
    plain = {"model": {"a": torch.zeros(3)}, "rng": random.Random(0).getstate()}
    torch.save(plain, tmp_path / "plain.pth", _use_new_zipfile_serialization=zipped)
    assert read_file(tmp_path / "plain.pth")[0]["rng"] == plain["rng"]
    torch.save({**plain, "list": [nest(60, 2)]}, tmp_path / "bomb.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"bomb.pth is no checkpoint: it holds a huge nest of tuples"):
        read_file(tmp_path / "bomb.pth")
