"""Rasters into views: the same drawn parameters, in the same order, as the plain renderer has them for colour pictures.

What has no meaning without red, green and blue is left out: saturation, hue and grey. That includes four channels, for
the fourth may be alpha or near infrared. One draw serves all channels of an image; where an operation needs a level
(contrast its mean, solarize its white), each channel has its own, for the bands of a satellite differ in brightness by
orders of magnitude.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.data.augment.multicrop import ColourJitter, ViewParameters
from selfpatch.data.decode.multichannel import Raster


def render_raster(raster: Raster, size: int, parameters: ViewParameters) -> Tensor:
    """Crop and resize (bicubic, antialiased), flip, brightness and contrast in their drawn order, blur, solarize.

    On 8 bits it agrees with the plain renderer to about a level (more where bicubic overshoots black or white, which
    Pillow cuts off half way); contrast does so on grey pictures, as Pillow takes the mean of the luminance. Pillow's
    blur is three box blurs, this one is the Gaussian itself: they differ by half a level in the mean, by a few levels
    at sharp edges.

    Args:
        raster: the whole image, upright.
        size: side of the rendered view in pixels.
        parameters: what `draw_view` drew for an image of this size.

    Returns:
        [C, size, size], uint8 or float32 as the raster is; floats lie in [0, 1] where the raster's do.
    """
    p = parameters
    view = resize_raster(raster, size, size, box=(p.left, p.top, p.width, p.height))
    if p.flip:
        view = view.flip(-1)
    if p.jitter is not None:
        view = _jitter(view, p.jitter, raster)
    if p.blur_radius > 0:
        view = gaussian_blur(view, p.blur_radius)
    if p.solarize:
        view = _solarize(view, raster)
    return view.contiguous()


def resize_raster(raster: Raster, width: int, height: int, *, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """A box (left, top, width, height) of a raster, or all of it, resized: [C, height, width]."""
    pixels = raster.pixels
    if box is not None:
        left, top, box_width, box_height = box
        pixels = pixels[:, top : top + box_height, left : left + box_width]
    if pixels.shape[1:] == (height, width):
        return pixels
    resized = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
    return _clamp(resized, raster)  # bicubic overshoots at edges


def gaussian_blur(view: Tensor, radius: float) -> Tensor:
    """Blurs each channel with a Gaussian of this standard deviation, cut off at three; edges are continued.

    Args:
        view: [C, h, w] uint8 or float32.
    """
    rows, columns = (_blurring(side, radius) for side in view.shape[1:])
    # Two products of dense matrices: several times faster than convolving single channels with 1 x k kernels.
    blurred = rows @ (view.float() @ columns.T)
    return (blurred.round() if view.dtype == torch.uint8 else blurred).to(view.dtype)


def _blurring(side: int, radius: float) -> Tensor:
    """[side, side] the matrix that blurs a line of so many pixels."""
    reach = math.ceil(3 * radius)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / radius) ** 2)
    pixels = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)  # [side, taps] the ends stand in for outside
    return torch.zeros(side, side).scatter_add_(1, pixels, (weights / weights.sum()).expand(side, -1))


def _jitter(view: Tensor, jitter: ColourJitter, raster: Raster) -> Tensor:
    for name in jitter.order:
        if name == "brightness":
            view = _blend(view, raster.black, jitter.brightness, raster)
        elif name == "contrast":
            view = _blend(view, view.float().mean((1, 2), keepdim=True), jitter.contrast, raster)
    return view


def _blend(view: Tensor, degenerate: Tensor, factor: float, raster: Raster) -> Tensor:
    """degenerate + factor * (view - degenerate); 8 bits are cut off, not rounded, after each step, as Pillow does."""
    return _clamp(torch.lerp(degenerate.float(), view.float(), factor), raster).to(view.dtype)


def _solarize(view: Tensor, raster: Raster) -> Tensor:
    """Inverts what is brighter than half way from black to white."""
    black, white = raster.black, raster.white
    threshold = (black.float() + white.float()) / 2
    inverted = _clamp(white - (view - black), raster)
    return torch.where(view > threshold, inverted, view)


def _clamp(view: Tensor, raster: Raster) -> Tensor:
    """To what a channel can hold: 8 or 16 bits their range, other numbers from black to 1 or to white, the higher."""
    return view.clamp(raster.black, raster.white.clamp(min=1))
