"""Parameters of each view's augmentation, drawn before anything is rendered.

They depend on (seed, epoch, sample, view) alone: they are the same for every renderer, for any number of workers and
processes, and in a run that is resumed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from selfpatch.config.schema import Size, height_and_width, size_text
from selfpatch.config.sections import AnchorConfig, CropConfig, GlobalCropConfig, PairConfig, Resampling

ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")
BOX_TRIES = 10
"""Number of boxes that are tried before the centre of the image is taken, as in torchvision's RandomResizedCrop."""
_DRAWS = 2 * BOX_TRIES + 2 + 6 + 2 * len(ADJUSTMENTS)
"""Random numbers per view: tries and position of its box, six choices, factors of the adjustments and their order."""
NO_COLOUR = GlobalCropConfig(jitter=0.0, grey=0.0)
"""Settings that leave the colours as they are."""


@dataclass(frozen=True)
class ViewRecipe:
    """Distribution of one view; by default it is cropped only."""

    size: Size  # side of the view in pixels, or (height, width)
    scale: tuple[float, float]  # range of the crop's area, as a fraction of the image's
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height over the view's own, log-uniform
    flip: float = 0.0  # probability of a horizontal flip
    blur: float = 0.0  # probability of blur
    solarize: float = 0.0  # probability of solarization
    resampling: Resampling = "bicubic"  # filter that resizes the crop
    colour: GlobalCropConfig = NO_COLOUR  # colour jitter, grey and the radius of blur; its other fields are not used
    inside: int | None = None  # number of an earlier view of the same image, whose box is cropped instead of the image
    box_like: Size | None = None  # size of the view whose box this view shows too, if it is another

    def __post_init__(self) -> None:
        if min(self.sides) < 1:
            raise ValueError(f"a view of {size_text(self.size)} pixels cannot be made; use sides of 1 or more")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is ({low}, {high}); use (low, high) with 0 < low <= high")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the view in pixels."""
        return height_and_width(self.size)

    @property
    def aspects(self) -> tuple[float, float]:
        """Range of width / height of the box, which lies around the view's own: neither axis is squeezed by more."""
        height, width = height_and_width(self.size if self.box_like is None else self.box_like)
        return self.ratio[0] * (width / height), self.ratio[1] * (width / height)


@dataclass(frozen=True)
class ColourJitter:
    """Drawn factors (1 changes nothing), hue shift (0 changes nothing) and order of the four adjustments."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[str, ...]


@dataclass(frozen=True)
class ViewParameters:
    """Drawn parameters of one view: the box is in pixels of the upright image, a `blur_radius` of 0 is no blur."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
    jitter: ColourJitter | None
    grey: bool
    blur_radius: float
    solarize: bool
    resampling: Resampling = "bicubic"

    @property
    def box(self) -> tuple[int, int, int, int, bool]:
        """Row of `Views.boxes`: (left, top, width, height, flipped)."""
        return self.left, self.top, self.width, self.height, self.flip


def grid_of(size: Size, patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of patches of a view."""
    height, width = height_and_width(size)
    return height // patch_size, width // patch_size


def dino_views(crops: CropConfig) -> tuple[ViewRecipe, ...]:
    """Return the recipes of DINO's multi-crop (arXiv 2104.14294): two global views, then `num_local` local ones."""
    shapes = [(crops.global_size, crops.global_scale)] * 2 + [(crops.local_size, crops.local_scale)]
    first, second, local = (
        ViewRecipe(
            size,
            scale,
            flip=crops.flip,
            blur=blur,
            solarize=solarize,
            resampling=crops.resampling,
            colour=crops,
        )
        for (size, scale), blur, solarize in zip(shapes, crops.blur, crops.solarize, strict=True)
    )
    return first, second, *[local] * crops.num_local


def pair_views(pairs: PairConfig, crops: CropConfig) -> tuple[ViewRecipe, ...]:
    """Return the recipes of clean crops, then of the crops inside them.

    Clean crops are cropped and flipped only. Contained ones are augmented as local crops.
    """
    clean = ViewRecipe(pairs.clean_size, pairs.clean_scale, flip=crops.flip, resampling=crops.resampling)
    contained = replace(
        dino_views(replace(crops, num_local=1))[2], size=pairs.contained_size, scale=pairs.contained_scale
    )
    return (
        *[clean] * pairs.num_clean,
        *(replace(contained, inside=i % pairs.num_clean) for i in range(pairs.num_contained)),
    )


def anchor_views(anchor: AnchorConfig, crops: CropConfig, patch_size: int) -> tuple[ViewRecipe, ...]:
    """Return the recipes of the global crops as an anchor of this patch size sees them, or () if it sees the same.

    View i is drawn from the stream of global crop i, so that both have one box. The sides are multiples of the patch
    size; the blur of colours that stay the same is as wide in the image.
    """
    sides = height_and_width(crops.global_size)
    height, width = (max(1, round(anchor.size * side / patch_size)) * patch_size for side in sides)
    size = height, width
    views = [replace(view, size=size, box_like=crops.global_size) for view in dino_views(crops)[:2]]
    if anchor.colours == "clean":
        return tuple(replace(view, blur=0.0, solarize=0.0, colour=NO_COLOUR) for view in views)
    if size == sides:
        return ()
    low, high = (radius * height / sides[0] for radius in crops.blur_radius)
    return tuple(replace(view, colour=replace(crops, blur_radius=(low, high))) for view in views)


def view_groups(
    recipes: Sequence[ViewRecipe],
    num_global: int = 2,
    pair_recipes: Sequence[ViewRecipe] = (),
    anchor_recipes: Sequence[ViewRecipe] = (),
) -> dict[str, list[ViewRecipe]]:
    """Return the recipes of the views of one size each, by the name of their crops in `Views`, if there are any.

    Args:
        recipes: recipes of multi-crop, global views first; empty if there are pairs alone.
        num_global: number of global views among them.
        pair_recipes: recipes of clean crops, then of those inside them.
        anchor_recipes: recipes of the anchor's crops.

    Raises:
        ValueError: there is no view, or the views of a group differ in size.
    """
    if (recipes or not pair_recipes) and not 1 <= num_global <= len(recipes):
        raise ValueError(f"num_global is {num_global}; use 1 or more, at most the number of recipes, {len(recipes)}")
    groups = {
        "global_crops": [*recipes[:num_global]],
        "local_crops": [*recipes[num_global:]],
        "clean_crops": [recipe for recipe in pair_recipes if recipe.inside is None],
        "contained_crops": [recipe for recipe in pair_recipes if recipe.inside is not None],
        "anchor_crops": [*anchor_recipes],
    }
    for name, group in groups.items():
        if len({recipe.sides for recipe in group}) > 1:
            sizes = [recipe.size for recipe in group]
            raise ValueError(
                f"{name.removesuffix('_crops')} views of sizes {sizes} do not fit into one batch; give them one size"
            )
    return {name: group for name, group in groups.items() if group}


class _Key(ISeedSequence):
    """Pass the key directly: seeding `Philox(seed)` from entropy is 4x slower."""

    def __init__(self, seed: int, epoch: int) -> None:
        self._words = np.array([seed % 2**64, epoch], np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        return self._words


def generator(seed: int, epoch: int, sample: int, view: int) -> np.random.Generator:
    """Return the random stream of one view of one image in one epoch, without drawing any other.

    Philox is a function of (key, counter). Seed and epoch are the key, sample and view the counter's upper words; the
    draws count in the lower words, so that no two streams ever share a block.
    """
    counter = np.array([0, 0, view, sample], np.uint64)
    return np.random.Generator(np.random.Philox(_Key(seed, epoch), counter=counter))  # type: ignore[arg-type]


def draw_view(recipe: ViewRecipe, image_size: tuple[int, int], rng: np.random.Generator) -> ViewParameters:
    """Draw the parameters of one view.

    The number of uniform draws does not depend on the recipe and the image, and each serves one purpose: turning jitter
    off, say, leaves boxes and blurs as they were. `image_size` is (width, height) of the upright image in pixels.
    """
    drawn: list[float] = rng.random(_DRAWS).tolist()  # plain floats: faster one by one than NumPy's
    tries, (x, y, flip, jitter, grey, blur, solarize, radius, *rest) = drawn[: 2 * BOX_TRIES], drawn[2 * BOX_TRIES :]
    factors, ranks = rest[: len(ADJUSTMENTS)], rest[len(ADJUSTMENTS) :]
    return ViewParameters(
        *_draw_box(recipe, image_size, tries, x, y),
        flip=flip < recipe.flip,
        jitter=_draw_jitter(recipe.colour, factors, ranks) if jitter < recipe.colour.jitter else None,
        grey=grey < recipe.colour.grey,
        blur_radius=_between(recipe.colour.blur_radius, radius) if blur < recipe.blur else 0.0,
        solarize=solarize < recipe.solarize,
        resampling=recipe.resampling,
    )


def draw_views(
    recipes: Sequence[ViewRecipe],
    image_size: tuple[int, int],
    stream: Callable[[int], np.random.Generator],
    first_stream: int = 0,
) -> list[ViewParameters]:
    """Draw the parameters of the views of an image, view i from `stream(first_stream + i)`."""
    drawn: list[ViewParameters] = []
    for number, recipe in enumerate(recipes, start=first_stream):
        if recipe.inside is None:
            drawn.append(draw_view(recipe, image_size, stream(number)))
        else:
            around = drawn[recipe.inside]
            view = draw_view(recipe, (around.width, around.height), stream(number))
            drawn.append(replace(view, left=view.left + around.left, top=view.top + around.top))
    return drawn


def _draw_box(
    recipe: ViewRecipe, image_size: tuple[int, int], tries: list[float], x: float, y: float
) -> tuple[int, int, int, int]:
    """Return the first box that fits, at (x, y) of the room left, or the largest one in the centre if none fits.

    Large areas do not fit where the view is wider than the image, or higher: such boxes are drawn again, as those of a
    square view are in a wide image (torchvision's RandomResizedCrop does the same).
    """
    image_width, image_height = image_size
    log_ratio = (math.log(recipe.aspects[0]), math.log(recipe.aspects[1]))
    for u_area, u_ratio in zip(tries[::2], tries[1::2], strict=True):
        area = image_width * image_height * _between(recipe.scale, u_area)
        ratio = math.exp(_between(log_ratio, u_ratio))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            return int(x * (image_width - width + 1)), int(y * (image_height - height + 1)), width, height
    width = min(image_width, max(1, round(image_height * recipe.aspects[1])))
    height = min(image_height, max(1, round(image_width / recipe.aspects[0])))
    return (image_width - width) // 2, (image_height - height) // 2, width, height


def _draw_jitter(colour: GlobalCropConfig, factors: list[float], ranks: list[float]) -> ColourJitter:
    strengths = (colour.brightness, colour.contrast, colour.saturation)
    brightness, contrast, saturation = (
        _between((max(0.0, 1 - x), 1 + x), u) for x, u in zip(strengths, factors[:3], strict=True)
    )
    hue = _between((-colour.hue, colour.hue), factors[3])
    order = tuple(ADJUSTMENTS[i] for i in sorted(range(len(ADJUSTMENTS)), key=ranks.__getitem__))
    return ColourJitter(brightness, contrast, saturation, hue, order)


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u
