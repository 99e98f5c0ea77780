"""Fast renderer: torch's 8-bit kernel resizes, OpenCV changes colours and blurs.

It is several times faster than the plain renderer, but not equal to the last bit: on photographs they differ by half a
level in the mean, for Pillow rounds after every adjustment and every pass of its blur, and turns hue in 8-bit HSV.
"""

import contextlib
import math
import threading
from collections.abc import Callable
from functools import cache, reduce
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfpatch.config.schema import Size, height_and_width
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
MOST_KEPT = 8
"""Number of sizes of views whose buffers are kept."""


def render_fast(image: Picture, size: Size, parameters: ViewParameters) -> Tensor:
    """Render a view as `pillow.render` does, with the same arguments; raise ValueError if OpenCV is not installed.

    RGB rasters in channels-last memory, as `decode.fast.read_fast` gives them, are the fastest; rasters of other
    channels or of floats go to `multichannel.render_raster`.
    """
    image = Raster.of(image)
    if image.rows.shape[2] != 3 or image.rows.dtype != np.uint8:
        return render_raster(image, size, parameters)
    cv2, sides = opencv(), height_and_width(size)
    pixels = _change_colours(_resize(image.rows, sides, parameters), parameters.jitter, parameters.grey)
    if parameters.blur_radius > 0:
        kernel = _blur_kernel(round(parameters.blur_radius, 2))  # few enough to cache; a 100th pixel is below rounding
        pixels = cv2.sepFilter2D(
            pixels, -1, kernel, kernel, dst=_scratch.other(pixels), borderType=cv2.BORDER_REPLICATE
        )
    if parameters.solarize:  # levels from 128 on are inverted
        cv2.min(pixels, cv2.bitwise_not(pixels, dst=_scratch.other(pixels)), dst=pixels)
    planes = np.empty((3, *sides), np.uint8)
    cv2.split(pixels, [*planes])
    return torch.from_numpy(planes)


@cache
def opencv() -> ModuleType:
    """Import cv2 and switch its threads off; raise ValueError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise ValueError(f"the fast renderer needs OpenCV, which is not installed; {INSTALL}") from None
    # One thread per loader process; a pool started before a process forks would leave the child waiting.
    cv2.setNumThreads(0)
    return cv2


def fast_rendering_available() -> bool:
    """Return whether OpenCV is installed."""
    with contextlib.suppress(ValueError):
        return opencv() is not None
    return False


class _Canvas(NamedTuple):
    """Memory of a view, seen from both libraries."""

    rows: np.ndarray  # [height, width, 3]
    batch: Tensor  # [1, 3, height, width]

    @staticmethod
    def of(memory: np.ndarray, height: int, width: int) -> "_Canvas":
        rows = memory[: height * width * 3].reshape(height, width, 3)
        return _Canvas(rows, torch.from_numpy(rows.transpose(2, 0, 1)[None]))


class _Scratch(threading.local):
    """Buffers of one thread, reused for view after view: fresh memory would have to be mapped first."""

    def __init__(self) -> None:
        self._cut = np.empty(0, np.uint8)
        self._pairs: dict[tuple[int, int], tuple[_Canvas, _Canvas]] = {}

    def cut(self, height: int, width: int) -> _Canvas:
        """Return an uninitialised canvas for a box; its content lasts until the next one."""
        count = height * width * 3
        if count > LARGEST_KEPT:
            return _Canvas.of(np.empty(count, np.uint8), height, width)
        if self._cut.size < count:
            self._cut = np.empty(count, np.uint8)
        return _Canvas.of(self._cut, height, width)

    def pair(self, height: int, width: int) -> tuple[_Canvas, _Canvas]:
        """Return the two uninitialised canvases for views of one size."""
        pair = self._pairs.get((height, width))
        if pair is None:
            count = height * width * 3
            pair = (
                _Canvas.of(np.empty(count, np.uint8), height, width),
                _Canvas.of(np.empty(count, np.uint8), height, width),
            )
            if count <= LARGEST_KEPT:
                if len(self._pairs) == MOST_KEPT:
                    self._pairs.clear()
                self._pairs[height, width] = pair
        return pair

    def other(self, rows: np.ndarray) -> np.ndarray:
        """Return memory for a view of the same size as the rows that a canvas holds: OpenCV copies what it changes."""
        first, second = self.pair(*rows.shape[:2])
        return second.rows if rows is first.rows else first.rows


_scratch = _Scratch()


def _resize(rows: np.ndarray, sides: tuple[int, int], p: ViewParameters) -> np.ndarray:
    """Return the box as [height, width, 3], mirrored before it is resized, for it must be copied anyway."""
    cv2 = opencv()
    box = rows[p.top : p.top + p.height, p.left : p.left + p.width]
    cut, view = _scratch.cut(p.height, p.width), _scratch.pair(*sides)[0]
    if p.flip:
        cv2.flip(box, 1, dst=cut.rows)
    else:
        cv2.copyTo(box, None, dst=cut.rows)
    _RESAMPLE[p.resampling](cut.batch, sides, False, None, None, out=view.batch)
    return view.rows


_RESAMPLE: dict[str, Callable[..., Tensor]] = {
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,
}
"""Kernels behind `F.interpolate`, which itself cannot write into given memory: ten crops take a seventh less time."""


class _Blend(NamedTuple):
    """Mapping x -> own * x + grey * luminance(x) + level, the form of brightness, contrast, saturation and grey."""

    own: float = 1.0
    grey: float = 0.0
    level: float = 0.0

    def after(self, first: "_Blend") -> "_Blend":
        """Return the composition: `first`, then this blend.

        The weights of luminance add up to 1, so a blended pixel has the luminance (own + grey) * luminance + level.
        """
        return _Blend(
            self.own * first.own,
            self.own * first.grey + self.grey * (first.own + first.grey),
            (self.own + self.grey) * first.level + self.level,
        )


_UNCHANGED = _Blend()


def _change_colours(view: np.ndarray, jitter: ColourJitter | None, grey: bool) -> np.ndarray:
    """Apply the adjustments in their drawn order, then grey, to [h, w, 3].

    Consecutive blends are composed into one as long as none of them can leave [0, 255], where Pillow would cut off.
    """
    blend = _UNCHANGED
    for name in jitter.order if jitter is not None else ():
        factor = getattr(jitter, name)
        if name == "hue":
            view, blend = _turn_hue(_apply(view, blend), factor), _UNCHANGED
            continue
        # Pillow truncates the fraction, half a level in the mean.
        if name == "brightness":
            step = _Blend(factor, 0.0, -0.5)
        elif name == "contrast":
            step = _Blend(factor, 0.0, (1 - factor) * _mean_luminance(view, blend) - 0.5)
        else:
            step = _Blend(factor, 1 - factor, -0.5)
        blend = step.after(blend)
        if factor > 1:
            view, blend = _apply(view, blend), _UNCHANGED
    return _apply(view, _Blend(0.0, 1.0).after(blend) if grey else blend)


def _mean_luminance(view: np.ndarray, blend: _Blend) -> int:
    """Return the mean luminance of the blended view as a whole number, as in Pillow."""
    red, green, blue, _ = opencv().mean(view)
    mean = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return math.floor((blend.own + blend.grey) * mean + blend.level + 0.5)


def _apply(view: np.ndarray, blend: _Blend) -> np.ndarray:
    if blend is _UNCHANGED:
        return view
    own, grey, level = blend
    r, g, b = grey * LUMINANCE[0], grey * LUMINANCE[1], grey * LUMINANCE[2]
    rows = (r + own, g, b, level), (r, g + own, b, level), (r, g, b + own, level)  # faster than by matrices
    return opencv().transform(view, np.array(rows, np.float32), dst=_scratch.other(view))


def _turn_hue(view: np.ndarray, turns: float) -> np.ndarray:
    shift = int(turns * 255) % 256  # as in torchvision
    if not shift:
        return view
    cv2, hsv = opencv(), _scratch.other(view)
    cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL, dst=hsv)
    rows = hsv.reshape(len(hsv), -1)
    shifts = np.zeros(rows.shape[1], np.uint8)
    shifts[::3] = shift
    np.add(rows, shifts, out=rows)  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=view)


@cache
def _blur_kernel(radius: float) -> np.ndarray:
    """Return the kernel [taps] of Pillow's Gaussian blur: box blurs of fractional width, as in `ops.blur`.

    Weights are multiples of 1 / 256, OpenCV's own precision, so that even areas stay as they are.
    """
    part, whole = math.modf(float(box_radius(torch.tensor(radius, dtype=torch.float64))))
    box = np.array([part, *[1.0] * (2 * int(whole) + 1), part]) / (2 * (whole + part) + 1)
    counts = np.rint(reduce(np.convolve, [box] * PASSES) * 256)
    counts[len(counts) // 2] += 256 - counts.sum()
    return (np.trim_zeros(counts) / 256).astype(np.float32)
