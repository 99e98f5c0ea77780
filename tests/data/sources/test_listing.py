"""Compact tables of images: joining, parts, and arrays that do not fit together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfpatch.data.sources import listing as module
from selfpatch.data.sources.listing import ImageEntry, Listing


def table() -> Listing:
    container = Listing.of_container("s.tar", {"b": (5, 6), "a": (3, 4)})
    return Listing.joined([b"x.jpg", b"y.jpg", container, b"z.jpg"])


def test_files_and_containers_are_joined_in_order() -> None:
    joined = table()
    assert joined.is_sound()
    assert [joined.entry(i) for i in range(len(joined))] == [
        ImageEntry(b"x.jpg"), ImageEntry(b"y.jpg"), ImageEntry(b"s.tar/a", 5, 3, 4), ImageEntry(b"s.tar/b", 5, 5, 6),
        ImageEntry(b"z.jpg"),
    ]  # fmt: skip
    assert Listing.joined([b"x.jpg"]).extents.shape == (0, 3)
    assert len(Listing.joined([])) == len(Listing.of_container("s.tar", {})) == 0


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_paths_in_parts(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    joined = table()
    assert joined.is_sound()
    assert [*joined.paths()] == [joined.entry(i)[:2] for i in range(len(joined))]
    files = Listing.of_files([b"a", b"bc", b"d"])
    assert [*files.paths()] == [(b"a", 0), (b"bc", 0), (b"d", 0)]


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": np.array([0, 5, 4, 17, 24, 29])},
        {"offsets": np.array([0, 5, 10, 17, 24, 28])},
        {"extents": np.full((5, 3), -1)},
        {"extents": np.zeros((4, 3), np.int64)},
        {"characters": np.zeros(29, np.int8)},
    ],
)
def test_arrays_that_do_not_fit_together(change: dict[str, np.ndarray]) -> None:
    assert not replace(table(), **change).is_sound()  # type: ignore[arg-type]
