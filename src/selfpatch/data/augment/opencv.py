"""Fast renderer: torch's 8-bit kernel resizes, OpenCV changes colours and blurs.

It is several times faster than the plain renderer, but not equal to the last bit: on photographs they differ by half a
level in the mean, for Pillow rounds after every adjustment and every pass of its blur, and turns hue in 8-bit HSV.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.data.augment.multichannel import render_raster
from selfpatch.data.augment.multicrop import ColourJitter, ViewParameters
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.blur import PASSES, box_radius

INSTALL = "run `pip install 'selfpatch[fast]'`"
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601-2, as in Pillow)."""
LARGEST_KEPT = 2**24
"""Bytes of the largest buffer that is kept for the next view: a rare huge photograph should not stay in memory."""


def render_fast(image: Picture, size: int, parameters: ViewParameters) -> Tensor:
    """Render a view as `pillow.render` does, with the same arguments.

    RGB rasters in channels-last memory, as `decode.fast.read_fast` gives them, are the fastest; rasters of other
    channels or of floats go to `multichannel.render_raster`.

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


@cache
def opencv() -> ModuleType:
    """Import cv2 and switch its threads off.

    Raises:
        ValueError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise ValueError(f"the fast renderer needs OpenCV, which is not installed; {INSTALL}") from None
    # One thread per loader process; a pool started before a process forks would leave the child waiting.
    cv2.setNumThreads(0)
    return cv2


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


class Pair:
    """A view and a spare buffer of its size, [h, w, 3] uint8; every operation leaves its result in `view`."""

    def __init__(self, view: np.ndarray, spare: np.ndarray) -> None:
        self.view, self.spare = view, spare

    def exchange(self) -> None:
        """Make the spare buffer the view."""
        self.view, self.spare = self.spare, self.view


class _Blend(NamedTuple):
    """Mapping x -> own * x + grey * luminance(x) + level, the form of brightness, contrast, saturation and grey."""

    own: float = 1.0
    grey: float = 0.0
    level: float = 0.0

    def after(self, first: _Blend) -> _Blend:
        """Return the composition: `first`, then this blend.

        The weights of luminance add up to 1, so a blended pixel has the luminance (own + grey) * luminance + level.
        """
        return _Blend(
            self.own * first.own,
            self.own * first.grey + self.grey * (first.own + first.grey),
            (self.own + self.grey) * first.level + self.level,
        )


_UNCHANGED = _Blend()


def change_colours(pair: Pair, jitter: ColourJitter | None, grey: bool) -> None:
    """Apply the adjustments in their drawn order, then grey.

    Consecutive blends are composed into one as long as none of them can leave [0, 255], where Pillow would cut off.
    """
    blend = _UNCHANGED
    for name in jitter.order if jitter is not None else ():
        factor = getattr(jitter, name)
        if name == "hue":
            _apply(pair, blend)
            blend = _UNCHANGED
            _turn_hue(pair, factor)
            continue
        # Pillow truncates the fraction, half a level in the mean.
        if name == "brightness":
            step = _Blend(factor, 0.0, -0.5)
        elif name == "contrast":
            step = _Blend(factor, 0.0, (1 - factor) * _mean_luminance(pair, blend) - 0.5)
        else:
            step = _Blend(factor, 1 - factor, -0.5)
        blend = step.after(blend)
        if factor > 1:
            _apply(pair, blend)
            blend = _UNCHANGED
    _apply(pair, _Blend(0.0, 1.0).after(blend) if grey else blend)


def _mean_luminance(pair: Pair, blend: _Blend) -> int:
    """Return the mean luminance of the blended view as a whole number, as in Pillow."""
    red, green, blue, _ = opencv().mean(pair.view)
    mean = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return math.floor((blend.own + blend.grey) * mean + blend.level + 0.5)


def _apply(pair: Pair, blend: _Blend) -> None:
    if blend is _UNCHANGED:
        return
    own, grey, level = blend
    red, green, blue = grey * LUMINANCE[0], grey * LUMINANCE[1], grey * LUMINANCE[2]
    rows = ((red + own, green, blue, level), (red, green + own, blue, level), (red, green, blue + own, level))
    matrix = np.array(rows, np.float32)
    opencv().transform(pair.view, matrix, dst=pair.spare)
    pair.exchange()


def _turn_hue(pair: Pair, turns: float) -> None:
    shift = int(turns * 255) % 256  # as in torchvision
    if shift == 0:
        return
    cv2 = opencv()
    cv2.cvtColor(pair.view, cv2.COLOR_RGB2HSV_FULL, dst=pair.spare)
    rows = pair.spare.reshape(len(pair.spare), -1)
    shifts = np.zeros(rows.shape[1], np.uint8)
    shifts[::3] = shift
    np.add(rows, shifts, out=rows)  # wraps around, as hue does
    cv2.cvtColor(pair.spare, cv2.COLOR_HSV2RGB_FULL, dst=pair.view)


def blur(pair: Pair, radius: float) -> None:
    """Blur as Pillow's Gaussian blur does, but round once, not after each pass."""
    cv2 = opencv()
    kernel = _blur_kernel(round(radius, 2))  # few enough kernels to cache them; a 100th of a pixel is below rounding
    cv2.sepFilter2D(pair.view, -1, kernel, kernel, dst=pair.spare, borderType=cv2.BORDER_REPLICATE)
    pair.exchange()


def solarize(pair: Pair) -> None:
    """Invert levels from 128 on: the result is the smaller one of x and 255 - x."""
    cv2 = opencv()
    cv2.bitwise_not(pair.view, dst=pair.spare)
    cv2.min(pair.view, pair.spare, dst=pair.view)


@cache
def _blur_kernel(radius: float) -> np.ndarray:
    """Return the kernel [taps] of Pillow's Gaussian blur: box blurs of fractional width, as in `ops.blur`.

    Weights are multiples of 1 / 256, OpenCV's own precision, so that even areas stay as they are.
    """
    part, whole = math.modf(float(box_radius(torch.tensor(radius, dtype=torch.float64))))
    whole = int(whole)  # pixels on each side that count fully
    box = np.array([part, *[1.0] * (2 * whole + 1), part]) / (2 * (whole + part) + 1)
    kernel = np.ones(1)
    for _ in range(PASSES):
        kernel = np.convolve(kernel, box)
    counts = np.rint(kernel * 256)
    counts[len(counts) // 2] += 256 - counts.sum()
    return (np.trim_zeros(counts) / 256).astype(np.float32)
