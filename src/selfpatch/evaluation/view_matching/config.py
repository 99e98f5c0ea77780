"""Settings of view matching."""

from typing import Annotated, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, Fraction, Size, settings
from selfpatch.config.sections import GlobalCropConfig
from selfpatch.evaluation.config import DenseConfig, LimitConfig


@settings
class ViewMatchingConfig(DenseConfig, LimitConfig, GlobalCropConfig):
    """View matching: share of patches that are found in another view of the same image; needs no labels.

    Both views are augmented as global crops in pre-training.
    """

    data_help: ClassVar[str] = (
        "Images as pre-training takes them: a folder, shards, archives, a text file that lists any of these, or a URL."
    )

    resolution: Size = 224
    """Side of the views in pixels, or height and width; multiples of the patch size."""
    blur: tuple[Fraction, Fraction] = (1.0, 0.1)
    """Probabilities of blur in the first and in the second view."""
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)
    """Probabilities of solarization in the first and in the second view."""
    seed: NonNegativeInt = 0
    """Random seed of the views."""
    encode_batch: Annotated[PositiveInt, SPEED_ONLY] = 64
    """Number of image pairs read at once, of which first and second views are encoded one after the other; changes
    speed and memory only."""
    max_pictures: Annotated[NonNegativeInt, SPEED_ONLY] = 8
    """Number of image pairs to draw, evenly spread, with the patches that were found and those that were not."""
