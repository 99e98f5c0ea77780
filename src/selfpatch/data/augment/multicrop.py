"""Draw, then render: what is done to each view is drawn here; rendering.py makes pixels of it.

What is drawn depends on (seed, epoch, sample, view) alone: the same for every renderer, for any number of workers and
processes, and in a run that is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random.bit_generator import ISeedSequence

ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")
BOX_TRIES = 10
"""Boxes that are tried before the centre of the image is taken, as torchvision's RandomResizedCrop does."""
_DRAWS = 2 * BOX_TRIES + 2 + 6 + 2 * len(ADJUSTMENTS)
"""Numbers a view: tries and place of its box, six choices, factors of the adjustments and their order."""


@dataclass(frozen=True)
class ViewRecipe:
    """How one view is drawn; by default it is cropped only.

    `flip`, `jitter`, `grey`, `blur` and `solarize` are probabilities.

    Attributes:
        size: side of the view in pixels.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width / height, drawn evenly in its logarithm.
        brightness, contrast, saturation: a factor is drawn from [max(0, 1 - x), 1 + x].
        hue: a shift is drawn from [-hue, hue], in turns of the colour circle; at most 0.5.
        blur_radius: range of the Gaussian's standard deviation in pixels of the view.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_radius: tuple[float, float] = (0.0, 0.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a view of {self.size} pixels cannot be made; use a size of 1 or more")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; it must lie between 0 and 0.5, half a turn of the colour circle")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is ({low}, {high}); use (low, high) with 0 < low <= high")
        if not 0 <= self.blur_radius[0] <= self.blur_radius[1]:
            raise ValueError(f"blur_radius is {self.blur_radius}; use (low, high) with 0 <= low <= high")


@dataclass(frozen=True)
class ColourJitter:
    """Factors (1 changes nothing), a hue shift (0 changes nothing), and the order in which the four are applied."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[str, ...]


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for one view. The box is in whole pixels of the upright image; `blur_radius` 0 means no blur."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
    jitter: ColourJitter | None
    grey: bool
    blur_radius: float
    solarize: bool

    @property
    def box(self) -> tuple[int, int, int, int, bool]:
        """A row of `Views.boxes`: (left, top, width, height, flipped)."""
        return self.left, self.top, self.width, self.height, self.flip


def dino_views(
    *,
    global_size: int,
    global_scale: tuple[float, float],
    num_local: int,
    local_size: int,
    local_scale: tuple[float, float],
    flip: float,
    jitter: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    grey: float,
    blur: tuple[float, float, float],
    blur_radius: tuple[float, float],
    solarize: tuple[float, float, float],
) -> tuple[ViewRecipe, ...]:
    """DINO's multi-crop (arXiv 2104.14294): two global views, then `num_local` local ones.

    `blur` and `solarize` are the probabilities in global view 1, in global view 2 and in each local view; all else is
    shared.
    """
    first = ViewRecipe(
        size=global_size,
        scale=global_scale,
        flip=flip,
        jitter=jitter,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grey=grey,
        blur=blur[0],
        blur_radius=blur_radius,
        solarize=solarize[0],
    )
    second = replace(first, blur=blur[1], solarize=solarize[1])
    if num_local == 0:
        return first, second
    local = replace(first, size=local_size, scale=local_scale, blur=blur[2], solarize=solarize[2])
    return (first, second, *[local] * num_local)


class _Key(ISeedSequence):
    """Hands Philox its key as it is. `Philox(key=...)` would ask the system for entropy first and take four times as
    long."""

    def __init__(self, seed: int, epoch: int) -> None:
        self._words = np.array([seed % 2**64, epoch], np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        return self._words


def generator(seed: int, epoch: int, sample: int, view: int) -> np.random.Generator:
    """The random numbers of one view of one image in one epoch, found without drawing any others.

    Philox is a function of (key, counter): seed and epoch are the key, sample and view the counter's upper words, and
    the draws themselves count in the lower ones, so that no two streams ever share a block.
    """
    counter = np.array([0, 0, view, sample], np.uint64)
    return np.random.Generator(np.random.Philox(_Key(seed, epoch), counter=counter))  # type: ignore[arg-type]


def draw_view(recipe: ViewRecipe, image_size: tuple[int, int], rng: np.random.Generator) -> ViewParameters:
    """Draws what happens to one view.

    The same uniform numbers are drawn whatever the recipe and the image are, and each serves one purpose, so that
    turning jitter off, say, leaves boxes and blurs as they were.

    Args:
        recipe: ranges and probabilities.
        image_size: (width, height) of the upright image in pixels.
        rng: `generator(seed, epoch, sample, view)`.
    """
    drawn: list[float] = rng.random(_DRAWS).tolist()  # plain floats: one by one they are quicker than NumPy's
    tries, (x, y, flip, jitter, grey, blur, solarize, radius, *rest) = drawn[: 2 * BOX_TRIES], drawn[2 * BOX_TRIES :]
    factors, ranks = rest[: len(ADJUSTMENTS)], rest[len(ADJUSTMENTS) :]
    left, top, width, height = _draw_box(recipe, image_size, zip(tries[::2], tries[1::2], strict=True), (x, y))
    return ViewParameters(
        left=left,
        top=top,
        width=width,
        height=height,
        flip=flip < recipe.flip,
        jitter=_draw_jitter(recipe, factors, ranks) if jitter < recipe.jitter else None,
        grey=grey < recipe.grey,
        blur_radius=_between(recipe.blur_radius, radius) if blur < recipe.blur else 0.0,
        solarize=solarize < recipe.solarize,
    )


def _draw_box(
    recipe: ViewRecipe,
    image_size: tuple[int, int],
    tries: Iterable[tuple[float, float]],
    position: tuple[float, float],
) -> tuple[int, int, int, int]:
    """For each try: an area and a ratio. The first box that fits is put anywhere; if none does: the centre."""
    image_width, image_height = image_size
    log_ratio = (math.log(recipe.ratio[0]), math.log(recipe.ratio[1]))
    for u_area, u_ratio in tries:
        area = image_width * image_height * _between(recipe.scale, u_area)
        ratio = math.exp(_between(log_ratio, u_ratio))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = int(position[0] * (image_width - width + 1))
            top = int(position[1] * (image_height - height + 1))
            return left, top, width, height
    # The largest box of an allowed ratio.
    width = min(image_width, max(1, round(image_height * recipe.ratio[1])))
    height = min(image_height, max(1, round(image_width / recipe.ratio[0])))
    return (image_width - width) // 2, (image_height - height) // 2, width, height


def _draw_jitter(recipe: ViewRecipe, factors: list[float], ranks: list[float]) -> ColourJitter:
    strengths = (recipe.brightness, recipe.contrast, recipe.saturation)
    brightness, contrast, saturation = (
        _between((max(0.0, 1 - x), 1 + x), u) for x, u in zip(strengths, factors[:3], strict=True)
    )
    hue = _between((-recipe.hue, recipe.hue), factors[3])
    order = tuple(ADJUSTMENTS[i] for i in sorted(range(len(ADJUSTMENTS)), key=ranks.__getitem__))
    return ColourJitter(brightness, contrast, saturation, hue, order)


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u
