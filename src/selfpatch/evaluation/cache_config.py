"""Settings of the feature cache."""

from typing import Annotated

from pydantic import NonNegativeFloat

from selfpatch.config.schema import SPEED_ONLY, settings


@settings
class CacheConfig:
    """Features that the evaluations of a suite share on disk."""

    cache_gb: Annotated[NonNegativeFloat, SPEED_ONLY] = 10.0
    """Largest size, in GB, of the features in OUT/features, by which the evaluations of a suite encode each image once;
    0 for none. Further images are encoded anew by each evaluation."""
    keep_cache: Annotated[bool, SPEED_ONLY] = False
    """Keep OUT/features for the next call; otherwise it is removed at the end."""
