"""Frames of videos as the images of `selfpatch embed`, decoded in order by PyAV.

A row is a moment of a video, and its picture the frame on screen then. The moments are known before anything is
decoded, so that an unfinished file of features continues, and several processes share the rows.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from selfpatch.core.folders import files_below
from selfpatch.core.text import counted
from selfpatch.data.decode.opening import check_size
from selfpatch.data.decode.pillow import BadImage, Picture, as_bad_image
from selfpatch.data.images import NoneReadable, evenly_spread
from selfpatch.data.sources.conversions import VIDEOS
from selfpatch.data.sources.regular import open_regular
from selfpatch.data.sources.remote import is_url
from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.rows import in_batches

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CONTAINERS = "mov,matroska,avi,mpeg,mpegts,ogg,asf,flv"
"""FFmpeg's names of the formats that are read, whatever a file is called: playlists would open other files."""


ROUNDING = 1e-4
"""Seconds by which times of frames may differ: half of the shortest distance of frames that anybody records."""

MAX_MOMENTS = 10_000_000
"""Largest number of moments of one video: days at every frame."""


@dataclass(frozen=True)
class Video:
    """A video, and the moments at which it is looked at."""

    path: Path
    name: str
    """Path below the source."""
    times: np.ndarray  # [n] float64
    """Seconds after the first frame, ascending."""
    stamp: tuple[int, int]
    """Size in bytes and modification time in ns."""


def find_videos(source: str | Path) -> list[Path]:
    """Return the videos below a folder, sorted, or the one file.

    Raises:
        ValueError: there is no such folder or file, or it lies behind a URL.
    """
    if is_url(str(source)):
        raise ValueError(f"videos are not read over a network; copy {source} to this machine")
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(f"no folder or file {str(source)!r}; give a video, or a folder of videos")
    return files_below(path, VIDEOS) if path.is_dir() else [path] if is_video(path) else []


def is_video(path: Path) -> bool:
    """Return whether a file is a video by its name."""
    return path.suffix.lower() in VIDEOS and path.is_file()


def examine(path: Path, name: str, config: EmbedConfig) -> Video:
    """Return a video with its moments: each `every`th frame, or `fps` moments a second.

    Raises:
        BadImage: it cannot be read.
    """
    with as_bad_image(path), opened_video(path) as (container, stream):
        status = os.stat(path)
        if config.every is not None:
            times = _frame_times(container, stream)[:: config.every]
        else:
            times = _moments(_duration(container, stream), config.fps or 1.0)
        return Video(path, name, times, (status.st_size, status.st_mtime_ns))


@contextmanager
def opened_video(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Open a video and its first picture stream.

    Raises:
        ValueError: the file has no pictures, or pictures that are too large.
        OSError: it cannot be read; PyAV raises other errors for damaged files.
    """
    import av

    with open_regular(path) as file, av.open(file, "r", options={"format_whitelist": CONTAINERS}) as container:
        if not container.streams.video:
            raise ValueError("it has no pictures; give a video")
        stream = container.streams.video[0]
        check_size(stream.codec_context.width, stream.codec_context.height)
        yield container, stream


def _duration(container: "InputContainer", stream: "VideoStream") -> float:
    """Return the length of a video in seconds as its file states it, or the time of its last frame."""
    if not container.format.name.startswith("mpeg"):  # which state an estimate
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return container.duration / 1e6
    return float(_frame_times(container, stream)[-1])


def _moments(duration: float, fps: float) -> np.ndarray:
    """Return the times [n] in seconds at which a video is looked at.

    Raises:
        ValueError: there are too many, as in a damaged file that states a length of years.
    """
    if not 0 <= duration * fps < MAX_MOMENTS:
        raise ValueError(f"it claims to last {duration:.3g} s; give it a right length, fewer --fps, or use --every")
    return np.arange(int(duration * fps - 1e-6) + 1) / fps


def _frame_times(container: "InputContainer", stream: "VideoStream") -> np.ndarray:
    """Return the times [n] of all frames in seconds after the first one, from packets alone: nothing is decoded."""
    base = stream.time_base
    packets = ((p.pts if p.pts is not None else p.dts) for p in container.demux(stream) if not p.is_discard)
    ticks = np.unique(np.array([tick for tick in packets if tick is not None], np.int64))
    if not len(ticks) or base is None:
        raise ValueError("it has no frames; give another video")
    return (ticks - ticks[0]) * float(base)


class FrameReader:
    """Reader of a video's frames at ascending times, which decodes what lies between them at most once."""

    def __init__(self, path: Path) -> None:
        self._opening = opened_video(path)
        self._container, self._stream = self._opening.__enter__()
        self._start, self._interval = 0.0, 0.0
        self._last_key: float | None = None
        self._frames: Iterator[VideoFrame] | None = None
        self._shown: VideoFrame | None = None
        self._next: VideoFrame | None = None
        self._rewind()
        if self._next is not None:
            self._start, self._last_key = self._time(self._next), 0.0

    def at(self, time: float) -> Image.Image:
        """Return the upright picture on screen a number of seconds after the first frame.

        Raises:
            ValueError: there is none; PyAV raises other errors for damaged files.
        """
        if self._frames is None or (self._shown is not None and self._must_seek(time - self._time(self._shown))):
            self._seek(time)
        while self._next is not None and self._time(self._next) <= time + ROUNDING:
            self._advance()
        if self._shown is None:
            raise ValueError(f"it has no frame at {time:.3f} s")
        picture = self._shown.to_image()
        return picture.rotate(self._shown.rotation, expand=True) if self._shown.rotation else picture

    def close(self) -> None:
        """Close the file."""
        self._opening.__exit__(None, None, None)

    def _must_seek(self, gap: float) -> bool:
        """Return whether a key frame lies between here and `gap` seconds later, as far as key frames were seen."""
        return gap < -ROUNDING or (self._next is not None and 0 < self._interval < gap)

    def _seek(self, time: float) -> None:
        """Go to the last key frame before a time, or to the beginning if the file does not tell where that is."""
        assert self._stream.time_base is not None
        self._container.seek(int((self._start + time) / self._stream.time_base), stream=self._stream)
        self._restart()
        if self._next is None or self._time(self._next) > time + ROUNDING:
            self._rewind()

    def _rewind(self) -> None:
        self._container.seek(0)
        self._restart()

    def _restart(self) -> None:
        self._frames, self._shown, self._next = self._container.decode(self._stream), None, None
        self._last_key = None
        self._advance()

    def _advance(self) -> None:
        """Decode one frame; after an error, the next time is looked for anew."""
        assert self._frames is not None
        frames, self._frames = self._frames, None
        self._shown, self._next = self._next, next(frames, None)
        self._frames = frames
        if self._next is not None and self._next.key_frame:
            key = self._time(self._next)
            if self._last_key is not None:
                self._interval = max(self._interval, key - self._last_key)
            self._last_key = key

    def _time(self, frame: "VideoFrame") -> float:
        """Return the seconds from the first frame to another."""
        return (frame.time or 0.0) - self._start


class FrameRows:
    """Moments of videos as rows of a file of features.

    Args:
        data: video, or folder of videos.
        config: `fps` or `every` chooses the moments, `limit` their number.
    """

    def __init__(self, data: str | Path, config: EmbedConfig) -> None:
        paths, root = find_videos(data), Path(data).expanduser()
        self.videos: list[Video] = []
        self.unreadable: list[BadImage] = []
        for path in paths:
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            try:
                self.videos.append(examine(path, name, config))
            except BadImage as error:
                self.unreadable.append(error)
        if not paths:
            raise ValueError(f"no videos in {data}; files with these endings are read: {' '.join(VIDEOS)}")
        if not self.videos:
            raise NoneReadable(len(paths), self.unreadable[0], "video")
        counts = [len(video.times) for video in self.videos]
        chosen = evenly_spread(np.arange(sum(counts)), config.limit or sum(counts))
        self._video = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[chosen]
        self._times = np.concatenate([video.times for video in self.videos])[chosen]
        self._reader: tuple[int, FrameReader] | None = None

    def __len__(self) -> int:
        return len(self._times)

    @property
    def num_images(self) -> int:
        """Number of moments before `limit`."""
        return sum(len(video.times) for video in self.videos)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names and moments."""
        digest = hashlib.sha256()
        for video in self.videos:
            digest.update(os.fsencode(video.name) + b"\0" + video.times.tobytes())
        return digest.hexdigest()[:32]

    def stamps(self) -> np.ndarray:
        """Return size and modification time of each row's video, int64 [n, 2]."""
        return np.array([video.stamp for video in self.videos], np.int64)[self._video]

    def name(self, row: int) -> str:
        """Return the video's name with the moment, `clip.mp4#t=12.480`."""
        return f"{self.videos[self._video[row]].name}#t={self._times[row]:.3f}"

    def path(self, row: int) -> str:
        """Return what an error calls the row's image."""
        return f"{self.videos[self._video[row]].path}#t={self._times[row]:.3f}"

    def picture(self, row: int, channels: int) -> Picture:
        """Return the frame of a row; rows ascend, or the video is searched again.

        Raises:
            ValueError: the network does not take RGB; errors of PyAV for damaged files.
        """
        if channels != 3:
            raise ValueError(f"the network takes {counted(channels, 'channel')}, and videos have 3; use another")
        number = int(self._video[row])
        if self._reader is None or self._reader[0] != number:
            self._close()
            self._reader = number, FrameReader(self.videos[number].path)
        return self._reader[1].at(float(self._times[row]))

    def batches(self, rows: np.ndarray, size: int, workers: int) -> list[np.ndarray]:
        """Return rows in batches of at most `size`, in turn of `workers` stretches, so that each is decoded once."""
        stretches = [in_batches(part, size) for part in np.array_split(rows, max(1, workers))]
        return [batch for turn in itertools.zip_longest(*stretches) for batch in turn if batch is not None]

    def _close(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None
