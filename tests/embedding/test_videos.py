"""Frames of videos: the right ones at the right moments, upright, and no file that a playlist names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfpatch.data.decode.pillow import BadImage
from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.videos import FrameReader, FrameRows, examine, find_videos

av = pytest.importorskip("av", reason="PyAV is not installed")


def write_video(path: Path, frames: int = 25, rotation: int = 0) -> Path:
    """Write 10 frames a second, each 10 levels brighter than the one before, with a key frame each 6 frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.options = {"sc_threshold": "1000000000"}  # no key frames besides
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 6
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            pixels = np.full((48, 64, 3), 10 * number, np.uint8)
            pixels[:16, :16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(picture: object) -> int:
    return round(float(np.asarray(picture)[-8:, -8:].mean()) / 10)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (EmbedConfig(), [0, 10, 20]),
        (EmbedConfig(fps=4), [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]),
        (EmbedConfig(every=1), list(range(25))),
        (EmbedConfig(every=8), [0, 8, 16, 24]),
        (EmbedConfig(every=8, limit=2), [0, 24]),
    ],
)
def test_moments_of_a_video(tmp_path: Path, suffix: str, config: EmbedConfig, numbers: list[int]) -> None:
    write_video(tmp_path / f"a{suffix}")
    rows = FrameRows(tmp_path, config)
    assert [number_of(rows.picture(row, 3)) for row in range(len(rows))] == numbers
    assert rows.name(1) == f"a{suffix}#t={numbers[1] / 10 + (0.05 if numbers[1] in (2, 7) else 0):.3f}"
    again = [len(rows) - 1, 0]  # backwards
    assert [number_of(rows.picture(row, 3)) for row in again] == [numbers[-1], numbers[0]]


def test_batches_are_stretches_in_turn(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    rows = FrameRows(tmp_path / "a.mp4", EmbedConfig(every=2))
    batches = [batch.tolist() for batch in rows.batches(np.arange(13), 3, 2)]
    assert batches == [[0, 1, 2], [7, 8, 9], [3, 4, 5], [10, 11, 12], [6]]


def test_distant_moments_are_sought_and_not_decoded_to(tmp_path: Path) -> None:
    reader = FrameReader(write_video(tmp_path / "a.mp4"))
    assert number_of(reader.at(0.7)) == 7
    assert reader._interval == pytest.approx(0.6)
    frames = reader._frames
    assert number_of(reader.at(1.1)) == 11
    assert reader._frames is frames
    assert number_of(reader.at(2.3)) == 23
    assert reader._frames is not frames
    reader.close()


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    reader = FrameReader(write_video(tmp_path / "a.mp4", 2, rotation=90))
    pixels = np.asarray(reader.at(0))
    assert pixels.shape == (64, 48, 3)
    assert pixels[-8:, :8].min() > 200  # counter-clockwise, the upper left corner comes to the lower left
    assert pixels[:8, :8].max() < 50


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"])
def test_what_is_no_video_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    write_video(tmp_path / "other.ts")
    with pytest.raises(BadImage, match=r"cannot read .*a\.mp4"):
        examine(tmp_path / "a.mp4", "a.mp4", EmbedConfig())
    rows = FrameRows(tmp_path, EmbedConfig())
    assert len(rows.unreadable) == 1
    assert rows.name(0) == "other.ts#t=0.000"
    with pytest.raises(ValueError, match=r"no video can be read \(1 tried\), e\.g\. cannot read .*a\.mp4"):
        FrameRows(tmp_path / "a.mp4", EmbedConfig())


def test_a_length_of_years_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(BadImage, match=r"it claims to last 2\.5 s; give it a right length, fewer --fps"):
        examine(path, "a.mp4", EmbedConfig(fps=1e7))


def test_sound_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(BadImage, match="it has no pictures; give a video"):
        examine(tmp_path / "a.mkv", "a.mkv", EmbedConfig())


def test_a_truncated_video_keeps_its_beginning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    rows = FrameRows(path, EmbedConfig(every=1))
    assert 5 < len(rows) < 25
    assert [number_of(rows.picture(row, 3)) for row in range(5)] == [0, 1, 2, 3, 4]


def test_a_video_behind_a_url_is_refused() -> None:
    with pytest.raises(ValueError, match=r"videos are not read over a network; copy http://host/a\.mp4 to this"):
        find_videos("http://host/a.mp4")
