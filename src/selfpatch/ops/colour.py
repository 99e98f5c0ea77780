"""Colour operations of Pillow and torchvision on batches, each image with a strength of its own.

Images are float32 [N, 3, h, w] of whole numbers in [0, 255], "levels". So is what comes out, rounded or cut off where
Pillow does it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from selfpatch.ops.images import sent

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The four adjustments of a colour jitter, as `jitter` knows them."""
NOTHING = -1
"""Stands in place of an adjustment."""

SOLARIZE_THRESHOLD = 128


def jitter(levels: Tensor, order: Tensor, strengths: Tensor) -> Tensor:
    """Up to four adjustments of each image, in its own order.

    For each image n and place p, one after the other:
        levels[n] = adjust[order[n, p]](levels[n], strengths[n, p])

    Args:
        levels: [N, 3, h, w].
        order: [N, 4] on the CPU, as numbers, which of the adjustments comes at each place, or NOTHING.
        strengths: [N, 4] float32 on the CPU, of the adjustment at each place: a factor, or a shift of the hue in
            levels.
    """
    blended = (order != HUE) & (order != NOTHING)
    plan = torch.stack(
        [torch.where(blended, strengths, 1.0), (order == CONTRAST).float(), (order == SATURATION).float()]
    )
    plan = sent(plan, levels.device)[..., None, None, None]  # [3, N, 4, 1, 1, 1]
    shifts = sent(strengths, levels.device)
    for place in range(order.shape[1]):
        # Brightness, contrast and saturation blend the image with black, its mean and its grey: one formula for all
        # three, and a factor of 1, which changes nothing, for the others.
        factor, to_mean, to_grey = plan[:, :, place]
        luminance = grey(levels)
        levels = blend(levels, to_mean * mean_level(luminance) + to_grey * luminance, factor)
        levels = to_some(levels, order[:, place] == HUE, partial(_shift_some, shifts[:, place]))
    return levels


def _shift_some(shifts: Tensor, levels: Tensor, rows: Tensor) -> Tensor:
    return shift_hue(levels, shifts[rows])


def to_some(levels: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Changes the chosen images: for operations that cost more than leaving others out.

    Args:
        levels: [N, ...].
        chosen: [N] bool, on the CPU, so that shapes are known without waiting for a device.
        change: (images [n, ...], which they are [n]) -> [n, ...].
    """
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return levels
    rows = sent(rows, levels.device)
    return levels.index_copy(0, rows, change(levels[rows], rows))


def blend(levels: Tensor, degenerate: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (levels - degenerate), cut off to [0, 255]; fractions are dropped, not rounded."""
    return torch.addcmul(degenerate, levels - degenerate, factor).clamp_(0, 255).floor_()


def grey(levels: Tensor) -> Tensor:
    """[N, 3, h, w] -> [N, 1, h, w], ITU-R 601 in Pillow's 16 bits; every sum is below 2^24 and so exact in float32."""
    red, green, blue = levels.split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor()


def mean_level(luminance: Tensor) -> Tensor:
    """[N, 1, h, w] -> [N, 1, 1, 1], rounded."""
    return (luminance.mean((2, 3), keepdim=True) + 0.5).floor()


def shift_hue(levels: Tensor, shift: Tensor) -> Tensor:
    """Turns the colour circle by a shift in levels, 255 of which count as a whole turn, through 8-bit HSV as Pillow
    has it."""
    hue, saturation, value = _to_hsv(levels)
    hue = (hue + shift[:, None, None, None]).remainder(256)
    return _from_hsv(hue, saturation, value)


def _to_hsv(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value, each [N, 1, h, w] of levels."""
    red, green, _ = levels.split(1, dim=1)
    value, low = levels.amax(1, keepdim=True), levels.amin(1, keepdim=True)
    chroma = value - low
    away_red, away_green, away_blue = ((value - levels) / chroma.clamp(min=1)).split(1, dim=1)
    sixths = torch.where(
        red == value,
        away_blue - away_green,
        torch.where(green == value, 2 + away_red - away_blue, 4 + away_green - away_red),
    )
    hue = (torch.where(sixths < 0, sixths + 6, sixths) * (255 / 6)).floor()
    saturation = (chroma / value.clamp(min=1) * 255).floor()
    return torch.where(chroma > 0, hue, 0.0), saturation, value


def _from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Of each colour, how far hue is from where it is full, cut off to a sixth of the circle, times the saturation, is
    what is missing of the value."""
    sixths, share = hue * 6 / 255, saturation / 255
    colours = []
    for offset in (5, 3, 1):  # red, green, blue
        distance = (sixths + offset).remainder(6)
        missing = torch.minimum(distance, 4 - distance).clamp(0, 1)
        colours.append((value * (1 - share * missing) + 0.5).floor())
    return torch.cat(colours, 1)


def solarize(levels: Tensor) -> Tensor:
    """Inverts levels from the threshold on."""
    return torch.where(levels >= SOLARIZE_THRESHOLD, 255 - levels, levels)
