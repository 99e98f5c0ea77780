"""Colour operations of Pillow and torchvision on batches, with a strength for each image.

Input and output are float32 [N, 3, h, w] of whole numbers in [0, 255], called levels, rounded or clamped as in Pillow.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from selfpatch.core.transfer import to_device

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The four adjustments of a colour jitter, as `jitter` numbers them."""
NOTHING = -1
"""No adjustment."""

SOLARIZE_THRESHOLD = 128


def jitter(levels: Tensor, order: Tensor, strengths: Tensor) -> Tensor:
    """Apply up to four adjustments to each image, in the image's own order.

        for each image n, for p in 0..3:
            levels[n] = adjust[order[n, p]](levels[n], strengths[n, p])

    Args:
        levels: [N, 3, h, w].
        order: [N, 4] on the CPU, the number of the p-th adjustment, or NOTHING.
        strengths: [N, 4] float32 on the CPU, the p-th adjustment's factor, or shift of the hue in levels.
    """
    blended = (order != HUE) & (order != NOTHING)
    plan = [torch.where(blended, strengths, 1.0), *((order == number).float() for number in (CONTRAST, SATURATION))]
    table = to_device(torch.stack(plan), levels.device)[..., None, None, None]  # [3, N, 4, 1, 1, 1]
    shifts = to_device(strengths, levels.device)
    for position in range(order.shape[1]):
        # Brightness, contrast and saturation blend the image with black, its mean and its grey: one formula for all
        # three, and a factor of 1, which changes nothing, for the others.
        factor, to_mean, to_grey = table[:, :, position]
        luminance = grey(levels)
        levels = blend(levels, to_mean * mean_level(luminance) + to_grey * luminance, factor)
        levels = to_some(levels, order[:, position] == HUE, shift_hue, shifts[:, position])
    return levels


def to_some(levels: Tensor, chosen: Tensor, change: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Change the chosen images only, for operations that cost more than selecting images.

    Args:
        levels: [N, ...].
        chosen: [N] bool, on the CPU, so that shapes are known without waiting for a device.
        change: function (images [n, ...], *values [n, ...]) -> [n, ...].
        values: [N, ...] each, on the device of the images.
    """
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return levels
    rows = to_device(rows, levels.device)
    return levels.index_copy(0, rows, change(levels[rows], *(value[rows] for value in values)))


def blend(levels: Tensor, degenerate: Tensor, factor: Tensor) -> Tensor:
    """Compute degenerate + factor * (levels - degenerate), clamped to [0, 255]; fractions are dropped."""
    return torch.addcmul(degenerate, levels - degenerate, factor).clamp_(0, 255).floor_()


def grey(levels: Tensor) -> Tensor:
    """Return the luminance [N, 1, h, w] by ITU-R 601 in Pillow's 16 bits; sums below 2^24 are exact in float32."""
    red, green, blue = levels.split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor()


def remove_colours(levels: Tensor) -> Tensor:
    """Return images [N, 3, h, w] whose channels are all the luminance."""
    return grey(levels).expand_as(levels)


def mean_level(luminance: Tensor) -> Tensor:
    """Return the rounded mean level: [N, 1, h, w] -> [N, 1, 1, 1]."""
    return (luminance.mean((2, 3), keepdim=True) + 0.5).floor()


def shift_hue(levels: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of images [N, 3, h, w] through Pillow's 8-bit HSV by shifts [N]; 255 are a whole turn."""
    hue, saturation, value = _to_hsv(levels)
    hue = (hue + shift[:, None, None, None]).remainder(256)
    return _from_hsv(hue, saturation, value)


def _to_hsv(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value, each [N, 1, h, w] of levels."""
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
    """Return levels [N, 3, h, w].

    For each colour, the missing part of the value is the saturation times the hue's distance from the colour's full
    range, clamped to a sixth of the circle.
    """
    sixths, share = hue * 6 / 255, saturation / 255
    colours = []
    for offset in (5, 3, 1):  # red, green, blue
        distance = (sixths + offset).remainder(6)
        missing = torch.minimum(distance, 4 - distance).clamp(0, 1)
        colours.append((value * (1 - share * missing) + 0.5).floor())
    return torch.cat(colours, 1)


def solarize(levels: Tensor) -> Tensor:
    """Invert levels from the threshold on."""
    return torch.where(levels >= SOLARIZE_THRESHOLD, 255 - levels, levels)
