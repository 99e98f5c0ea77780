"""The renderers by name, and which of them a run takes."""

from __future__ import annotations

from typing import Literal, TypedDict

from selfpatch.data.augment.opencv import fast_rendering_available, render_fast
from selfpatch.data.augment.opencv_color import INSTALL
from selfpatch.data.augment.pillow import render
from selfpatch.data.collate import Render
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.pillow import read_picture
from selfpatch.data.loader import Read

Name = Literal["plain", "fast", "device"]


class RenderBackend(TypedDict):
    """How a `CropLoader` reads and renders."""

    read: Read
    render: Render | None


_WAYS: dict[Name, RenderBackend] = {
    "plain": {"read": read_picture, "render": render},
    "fast": {"read": read_fast, "render": render_fast},
    "device": {"read": read_fast, "render": None},
}


def choose_backend(asked: Literal["auto"] | Name, *, device_type: str, channels: int) -> Name:
    """What `auto` comes to: the device where it is a GPU that this was written for, OpenCV where it is installed, or
    Pillow; images of other than three channels are always rendered plainly.

    Raises:
        ValueError: `fast` was asked for, and OpenCV is not installed.
    """
    if asked == "auto":
        if channels != 3:
            return "plain"
        if device_type == "cuda":
            return "device"
        return "fast" if fast_rendering_available() else "plain"
    if asked == "fast" and not fast_rendering_available():
        raise ValueError(f"loader.render is 'fast', but OpenCV is not installed; {INSTALL}, or use 'plain'")
    return asked


def render_backend(name: Name) -> RenderBackend:
    return _WAYS[name]
