"""Settings of `selfpatch show`."""

from pydantic import NonNegativeInt, PositiveInt

from selfpatch.config.matching import MatchingConfig
from selfpatch.config.schema import settings


@settings
class ShowConfig(MatchingConfig):
    """Size of the images and rule by which the positives of a query patch are chosen."""

    resolution: PositiveInt = 480
    """Short side that images are resized to, in pixels; both sides become multiples of the patch size."""
    debias: NonNegativeInt = 0
    """Number of directions to remove from patch features, those that tell the position of a patch (INSID3, arXiv
    2603.28480); 0 removes none."""
