"""Summary of a preparation: one that is damaged counts as none."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.data.prepare.summary import read_summary


@pytest.mark.parametrize("content", [b"", b"[]", b'{"request": {}}', b"\xff"])
def test_a_damaged_summary_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prepared.json").write_bytes(content)
    assert read_summary(tmp_path) is None
