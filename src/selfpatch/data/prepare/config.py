"""Settings of `selfpatch prepare`."""

from typing import Annotated

from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, Workers, settings


@settings
class PrepareConfig:
    """Size and quality of the prepared images, and size of the shards."""

    max_side: Annotated[int, Ge(32), Le(16384)] = 512
    """Longest side in pixels; larger images are resized (antialiased, Lanczos) and become JPEG files. Smaller ones are
    copied byte for byte."""
    quality: Annotated[int, Ge(1), Le(100)] = 92
    """JPEG quality of resized images, on libjpeg's scale of numbers from 1 to 100."""
    shard_mb: PositiveFloat = 256
    """Size in MB after which a shard is closed. A call that was stopped continues after the last closed shard."""
    max_distance: Annotated[int, Ge(0), Le(6)] = 4
    """Largest number of the 128 bits of two perceptual hashes that differ between near-duplicates; 0 lists equal hashes
    alone."""
    limit: PositiveInt | None = None
    """Number of images, evenly spread; all if not given."""
    workers: Annotated[Workers | None, SPEED_ONLY] = None
    """Number of processes that resize images; defaults to the number of cores. 0 works in this process."""
