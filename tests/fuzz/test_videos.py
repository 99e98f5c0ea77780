"""Damaged videos: their frames are read, or refused in one sentence, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.data.decode.pillow import as_bad_image
from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.videos import FrameRows, find_videos
from tests.fuzz.test_files import fuzzed, read
from tests.helpers.mutations import damaged_bytes


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    from tests.embedding.test_videos import write_video

    av.logging.set_level(None)
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"whole{suffix}", 12) for suffix in (".mp4", ".mkv", ".avi", ".ts")]


def picture(rows: FrameRows, row: int) -> None:
    """Read a frame as embed does."""
    with as_bad_image(rows.path(row)):
        rows.picture(row, 3)


@pytest.mark.slow
@fuzzed(25)
@given(data=st.data())
def test_videos(videos: list[Path], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(videos))
    path = whole.with_name(f"damaged{whole.suffix}")
    path.write_bytes(data.draw(damaged_bytes(whole.read_bytes())))
    rows = read(lambda: FrameRows(path, data.draw(st.sampled_from([EmbedConfig(every=3), EmbedConfig(fps=3)]))))
    for row in range(min(20, 0 if rows is None else len(rows))):
        read(lambda row=row: picture(rows, row))
    assert path in find_videos(path.parent)
