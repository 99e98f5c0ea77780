"""Renderer for images of any number of channels, with the same parameters and order as the plain renderer.

Saturation, hue and grey, which need RGB, are left out, for four channels too: the fourth may be alpha or near infrared.
One draw serves all channels. Levels (the mean for contrast, white for solarize) are per channel, because satellite
bands differ in brightness by orders of magnitude.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.config.schema import Size, height_and_width
from selfpatch.config.sections import Resampling
from selfpatch.data.augment.multicrop import ViewParameters
from selfpatch.data.decode.multichannel import Raster


def render_raster(raster: Raster, size: Size, parameters: ViewParameters) -> Tensor:
    """Render a view [C, h, w] in the raster's type, uint8 or float32; floats stay in [0, 1] if they begin there.

    On 8 bits it agrees with the plain renderer to about a level, and by more where bicubic overshoots black or white,
    which Pillow cuts off half way. Contrast agrees on grey pictures only, as Pillow takes the mean of the luminance.
    Pillow's blur is three box blurs, this is the Gaussian: they differ by half a level on average, more at edges.
    """
    p = parameters
    height, width = height_and_width(size)
    view = resize_raster(raster, width, height, box=(p.left, p.top, p.width, p.height), resampling=p.resampling)
    if p.flip:
        view = view.flip(-1)
    for name in p.jitter.order if p.jitter is not None else ():
        if name in ("brightness", "contrast"):
            degenerate = raster.black if name == "brightness" else view.float().mean((1, 2), keepdim=True)
            view = _blend(view, degenerate, getattr(p.jitter, name), raster)
    if p.blur_radius > 0:
        view = gaussian_blur(view, p.blur_radius)
    if p.solarize:  # levels above the middle between black and white are inverted
        black, white = raster.black, raster.white
        threshold = (black.float() + white.float()) / 2
        view = torch.where(view > threshold, _clamp(white - (view - black), raster), view)
    return view.contiguous()


def resize_raster(
    raster: Raster,
    width: int,
    height: int,
    *,
    box: tuple[int, int, int, int] | None = None,
    resampling: Resampling = "bicubic",
) -> Tensor:
    """Resize a box (left, top, width, height) of a raster, or all of it, to [C, height, width]."""
    pixels = raster.pixels
    if box is not None:
        left, top, box_width, box_height = box
        pixels = pixels[:, top : top + box_height, left : left + box_width]
    if pixels.shape[1:] == (height, width):
        return pixels
    resized = F.interpolate(pixels[None], (height, width), mode=resampling, antialias=True)[0]
    return _clamp(resized, raster)  # bicubic overshoots at edges


def gaussian_blur(view: Tensor, radius: float) -> Tensor:
    """Blur each channel of a view [C, h, w] with a Gaussian of standard deviation `radius` in pixels.

    It is cut off at three standard deviations; edges are continued.
    """
    rows, columns = (_blur_matrix(side, radius) for side in view.shape[1:])
    # Two products of dense matrices: several times faster than convolving single channels with 1 x k kernels.
    blurred = rows @ (view.float() @ columns.T)
    return (blurred.round() if view.dtype == torch.uint8 else blurred).to(view.dtype)


def _blur_matrix(side: int, radius: float) -> Tensor:
    """Return the matrix [side, side] that blurs a line of `side` pixels."""
    reach = math.ceil(3 * radius)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / radius) ** 2)
    pixels = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)  # [side, taps] the ends stand in for outside
    return torch.zeros(side, side).scatter_add_(1, pixels, (weights / weights.sum()).expand(side, -1))


def _blend(view: Tensor, degenerate: Tensor, factor: float, raster: Raster) -> Tensor:
    """Return degenerate + factor * (view - degenerate); 8 bits are truncated after each step, as in Pillow."""
    return _clamp(torch.lerp(degenerate.float(), view.float(), factor), raster).to(view.dtype)


def _clamp(view: Tensor, raster: Raster) -> Tensor:
    """Clamp to the range of a channel: from black to white, or to 1 if white is lower."""
    return view.clamp(raster.black, raster.white.clamp(min=1))
