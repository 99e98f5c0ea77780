"""Settings of `selfpatch embed`."""

from typing import Annotated, Literal

from annotated_types import Gt, MinLen
from pydantic import PositiveInt

from selfpatch.config.debiasing import DebiasingConfig
from selfpatch.config.schema import SPEED_ONLY, Size, Workers, settings

Feature = Literal["image", "patches"]


@settings
class EmbedConfig(DebiasingConfig):
    """Features to compute, the size of the images, and the type of the numbers."""

    features: Annotated[tuple[Feature, ...], MinLen(1)] = ("image",)
    """Features to write: `image`, one vector per image; `patches`, one per patch of the grid."""
    resolution: Size = 224
    """Side of the images in pixels, or height and width; rounded down to multiples of the patch size."""
    fit: Literal["crop", "stretch"] = "crop"
    """Way to that size: crop keeps the aspect ratio and the centre; stretch keeps the whole image."""
    dtype: Literal["float32", "float16", "int8"] = "float16"
    """Type of the features in the file; int8 stores round(127 x / max|x|) of each vector x, and max|x| / 127 as its
    scale."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the encoder; bf16 uses autocast."""
    fps: Annotated[float, Gt(0)] | None = None
    """Take frames of the videos of the source, this many for each second, in place of its images (1 if the source is a
    video)."""
    every: PositiveInt | None = None
    """Take each Nth frame of the videos of the source in place of its images."""
    limit: PositiveInt | None = None
    """Number of images or frames, evenly spread; all if not given."""
    batch_size: Annotated[PositiveInt, SPEED_ONLY] = 32
    """Number of images encoded at once."""
    workers: Workers = 2
    """Number of processes that read images; 0 reads in this process."""

    def __post_init__(self) -> None:
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features are {list(self.features)}; name each once")
        if self.fps is not None and self.every is not None:
            raise ValueError(f"fps is {self.fps:g} and every is {self.every}; give one of them")
