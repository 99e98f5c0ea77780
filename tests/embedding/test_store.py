"""Raw files of features: rows in any order, states, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfpatch.embedding import store as stores
from selfpatch.embedding.store import DONE, MISSING, Column, FeatureStore


def test_rows_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ROWS_AT_ONCE", 3)
    store = FeatureStore(tmp_path / "f", {"image": Column("float16", (2, 2))}, 10)
    store.begin({"a": 1}, np.zeros((10, 2), np.int64))
    values = np.arange(40, dtype=np.float16).reshape(10, 2, 2)
    for rows in ([0, 1, 2], [4, 6, 7, 9]):
        store.write("image", np.array(rows), values[rows])
        store.write("state", np.array(rows), np.full(len(rows), DONE))
    done = store.rows(DONE)
    assert done.tolist() == [0, 1, 2, 4, 6, 7, 9]
    assert store.rows(MISSING).tolist() == [3, 5, 8]
    chunks = list(store.chunks("image", done))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), values[done])


def test_another_request_is_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "f", {"image": Column("int8", (2,))}, 3)
    stamps = np.arange(6).reshape(3, 2)
    store.begin({"weights": "a", "resolution": (1, 2)}, stamps)
    store.write("state", np.array([1, 2]), np.array([DONE, DONE]))
    store.begin({"weights": "a", "resolution": (1, 2)}, stamps)
    assert store.rows(DONE).tolist() == [1, 2]
    stamps[2, 1] += 1
    store.begin({"weights": "a", "resolution": (1, 2)}, stamps)
    assert store.rows(DONE).tolist() == [1], "a changed image is encoded again"
    with pytest.raises(ValueError, match=r"another request \(weights was 'a' and is 'b'\); remove it, or name another"):
        store.begin({"weights": "b", "resolution": (1, 2)}, stamps)
    (store.folder / "mine.txt").touch()
    store.remove()
    assert [path.name for path in store.folder.iterdir()] == ["mine.txt"]
