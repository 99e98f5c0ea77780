"""Cache on disk: content is found again, damage is not, and the size stays within its limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfpatch.core.disk_cache import FOLDERS, SIZE_VARIABLE, keep, kept, lookup, max_bytes


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "selfpatch" / "images"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_content_is_fetched_once(folder: Path) -> None:
    fetched: list[str] = []
    for _ in range(2):
        assert kept("a", lambda: fetched.append("a") or b"content") == b"content"  # type: ignore[func-returns-value]
    assert fetched == ["a"]
    assert lookup("b") is None


@pytest.mark.parametrize("damage", [b"", b"abc", b"content\0\0\0\0"])
def test_damaged_content_is_fetched_again(folder: Path, damage: bytes) -> None:
    keep("a", b"content")
    (file,) = files(folder)
    file.write_bytes(damage)
    assert kept("a", lambda: b"new") == b"new"


def test_the_limit_holds_and_what_was_used_last_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, str(FOLDERS * 10_000 / 1e9))  # 10 kB for each of the folders
    keep("used", b"x" * 900)
    for i in range(3000):
        keep(str(i), b"y" * 900)
        if i % 200 == 0:
            assert lookup("used") is not None, i
            (own,) = [path for path in files(folder) if path.read_bytes()[:1] == b"x"]
            os.utime(own, ns=(0, 2**62))
    sizes = {part: sum(file.stat().st_size for file in part.iterdir()) for part in folder.iterdir()}
    assert max(sizes.values()) <= 10_000
    assert sum(sizes.values()) > 0.5 * FOLDERS * 10_000
    assert lookup("used") is not None


def test_no_cache_and_a_folder_that_cannot_be_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    assert kept("a", lambda: b"1") == b"1"
    assert not folder.exists()
    monkeypatch.setenv(SIZE_VARIABLE, "1")
    folder.parent.write_bytes(b"in the way")
    assert kept("a", lambda: b"1") == b"1"


@pytest.mark.parametrize("value", ["-1", "many", "nan", "inf"])
def test_a_wrong_size_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, value)
    with pytest.raises(ValueError, match=f"SELFPATCH_CACHE_GB is '{value}'; set it to a size in GB, e.g. 20"):
        max_bytes()
