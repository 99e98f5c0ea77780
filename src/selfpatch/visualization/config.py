"""Settings of `selfpatch show`."""

from pydantic import PositiveInt

from selfpatch.config.debiasing import DebiasingConfig
from selfpatch.config.matching import MatchingConfig
from selfpatch.config.schema import settings


@settings
class ShowConfig(MatchingConfig, DebiasingConfig):
    """Size of the images and rule by which the positives of a query patch are chosen."""

    resolution: PositiveInt = 480
    """Short side that images are resized to, in pixels; both sides become multiples of the patch size."""
