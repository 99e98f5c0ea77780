"""Fast renderer: torch's 8-bit kernel resizes, OpenCV changes colours and blurs.

It is several times faster than the plain renderer, but not equal to the last bit: on photographs they differ by half a
level in the mean, for Pillow rounds after every adjustment and every pass of its blur, and turns hue in 8-bit HSV.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.data.augment.multichannel import render_raster
from selfpatch.data.augment.multicrop import ViewParameters
from selfpatch.data.augment.opencv_color import Pair, blur, change_colours, opencv, solarize
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import Picture

LARGEST_KEPT = 2**24
"""Bytes of the largest buffer that is kept for the next view: a rare huge photograph should not stay in memory."""


def render_fast(image: Picture, size: int, parameters: ViewParameters) -> Tensor:
    """Crop and resize (bicubic, antialiased), flip, jitter colours, make grey, blur and solarize a view.

    Args:
        image: the whole image, upright. An RGB raster in channels-last memory, as `decode.fast.read_fast` gives it, is
            the fastest; a raster of other channels or of floats goes to `multichannel.render_raster`.
        size: side of the rendered view in pixels.
        parameters: result of `draw_view` for an image of this size.

    Returns:
        View [3, size, size] in uint8; for other rasters the result of `render_raster`.

    Raises:
        ValueError: OpenCV is not installed.
    """
    if isinstance(image, Image.Image):
        image = Raster(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    if len(image.pixels) != 3 or image.pixels.dtype != torch.uint8:
        return render_raster(image, size, parameters)
    p = parameters
    pair = Pair(_resize(image.pixels, size, p), _scratch.buffer("spare", size, size))
    change_colours(pair, p.jitter, p.grey)
    if p.blur_radius > 0:
        blur(pair, p.blur_radius)
    if p.solarize:
        solarize(pair)
    view = torch.empty(3, size, size, dtype=torch.uint8)
    opencv().split(pair.view, list(view.numpy()))
    return view


def fast_rendering_available() -> bool:
    """Return whether OpenCV is installed."""
    try:
        opencv()
    except ValueError:
        return False
    return True


class _Scratch(threading.local):
    """Buffers of one thread, reused for view after view: fresh memory would have to be mapped first."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def buffer(self, name: str, height: int, width: int) -> np.ndarray:
        """Return an uninitialised buffer [height, width, 3] in uint8."""
        count = height * width * 3
        if count > LARGEST_KEPT:
            return np.empty((height, width, 3), np.uint8)
        if name not in self._buffers or self._buffers[name].size < count:
            self._buffers[name] = np.empty(count, np.uint8)
        return self._buffers[name][:count].reshape(height, width, 3)


_scratch = _Scratch()


def _resize(pixels: Tensor, size: int, p: ViewParameters) -> np.ndarray:
    """Return the box as [size, size, 3], mirrored before it is resized, for it must be copied anyway."""
    cv2 = opencv()
    box = pixels.permute(1, 2, 0).numpy()[p.top : p.top + p.height, p.left : p.left + p.width]
    cut, view = _scratch.buffer("cut", p.height, p.width), _scratch.buffer("view", size, size)
    if p.flip:
        cv2.flip(box, 1, dst=cut)
    else:
        cv2.copyTo(box, None, dst=cut)
    _resample(_as_batch(cut), [size, size], False, None, None, out=_as_batch(view))
    return view


_resample: Callable[..., Tensor] = torch._C._nn._upsample_bicubic2d_aa
"""Kernel behind `F.interpolate`, which itself cannot write into given memory: ten crops take a seventh less time."""


def _as_batch(pixels: np.ndarray) -> Tensor:
    """View [h, w, 3] as [1, 3, h, w] in the same memory."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])
