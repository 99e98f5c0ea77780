"""Settings of `selfpatch explore`."""

from pydantic import PositiveFloat, PositiveInt

from selfpatch.config.debiasing import DebiasingConfig
from selfpatch.config.matching import MatchingConfig
from selfpatch.config.schema import settings


@settings
class ExploreConfig(MatchingConfig, DebiasingConfig):
    """Size of the images and of the page, and rule by which the positives of a patch are chosen."""

    resolution: PositiveInt = 480
    """Short side that images are resized to, in pixels; both sides become multiples of the patch size."""
    limit: PositiveInt = 12
    """Largest number of held-out images of a run; image files are all shown."""
    components: PositiveInt = 128
    """Largest number of principal components that features are reduced to."""
    megabytes: PositiveFloat = 14
    """Largest size of the page in MB; the number of components is lowered until it fits."""
