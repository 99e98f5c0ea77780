"""Settings of `selfpatch show`."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt

from selfpatch.config.schema import settings


@settings
class ShowConfig:
    """Size of the images and rule by which the positives of a query patch are chosen."""

    resolution: Annotated[int, Gt(0)] = 480
    """Short side that images are resized to, in pixels; both sides become multiples of the patch size."""
    k: Annotated[int, Gt(0)] = 4
    """Number of positives of a query patch (the most similar patches of its window)."""
    window: Annotated[int, Ge(3)] | Literal["all"] = 3
    """Side of the square window around a query patch, in patches (odd), or `all` for the whole image."""
    border: Literal["wrap", "clip"] = "wrap"
    """Windows at the image border: `wrap` continues at the opposite side (as released), `clip` keeps to the image."""
