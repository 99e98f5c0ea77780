"""Table of the renderers, and the choice of one for a run."""

from typing import Literal, NamedTuple

from selfpatch.data.augment.opencv import INSTALL, fast_rendering_available, render_fast
from selfpatch.data.augment.pillow import render
from selfpatch.data.collate import Render
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.pillow import Read, read_picture

Name = Literal["plain", "fast", "device"]


class RenderBackend(NamedTuple):
    """Functions that read an image and render a view of it; `render` is None if the device renders."""

    read: Read
    render: Render | None


BACKENDS: dict[Name, RenderBackend] = {
    "plain": RenderBackend(read_picture, render),
    "fast": RenderBackend(read_fast, render_fast),
    "device": RenderBackend(read_fast, None),
}


def choose_backend(name: Literal["auto"] | Name, *, device_type: str, channels: int) -> Name:
    """Resolve `auto`: `device` on CUDA, else `fast` if OpenCV is installed; `plain` unless images have 3 channels.

    ValueError is raised if the name is `fast`, and OpenCV is not installed.
    """
    if name == "auto" and channels == 3 and device_type == "cuda":
        return "device"
    if name == "auto":
        return "fast" if channels == 3 and fast_rendering_available() else "plain"
    if name == "fast" and not fast_rendering_available():
        raise ValueError(f"loader.render is 'fast', but OpenCV is not installed; {INSTALL}, or use 'plain'")
    return name
