"""Settings of image retrieval on revisited Oxford and Paris."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, MinLen
from pydantic import PositiveInt

from selfpatch.config.schema import SPEED_ONLY, settings
from selfpatch.evaluation.config import FrozenConfig, LimitConfig


@settings
class RetrievalConfig(FrozenConfig, LimitConfig):
    """Image retrieval (revisited Oxford and Paris): database images ranked by the cosine of image features.

    mAP and mean precision are given for easy, medium and hard.
    """

    data_help: ClassVar[str] = (
        "Folder with jpg/ and one JSON file of imlist, qimlist and gnd, made from gnd_roxford5k.pkl or "
        "gnd_rparis6k.pkl as docs/evaluations.md says."
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dino": {},
        # DINOv3's paper states the long side and a centre crop. Its resampling and its queries are not known: queries
        # are cropped as revisited Oxford and Paris define them.
        "dinov3": {"trim": "centre", "crop_queries": True, "resampling": "bicubic"},
    }

    preset: Literal["dino", "dinov3"] = "dino"
    """Preset that the other settings start from. dino: the released code of DINO, whole queries. dinov3: centre crops
    and queries cropped to their boxes."""
    resolution: Annotated[int, Ge(1)] = 224
    """Largest long side of the images, in pixels; smaller images are not enlarged."""
    trim: Literal["corner", "centre"] = "corner"
    """Part of an image that is kept where its sides are no whole patches: from the upper left corner, which is what a
    ViT's convolution reads, or about the centre."""
    crop_queries: bool = False
    """Crop queries to their boxes, as revisited Oxford and Paris define them; DINO's released code does not."""
    resampling: Literal["lanczos", "bicubic"] = "lanczos"
    """Interpolation of the resize."""
    limit: PositiveInt | None = None
    """Number of database images, evenly spread; defaults to all. Queries keep those of their images that are left."""
    multiscale: bool = False
    """Average the features at scales 1, 0.71 and 0.5, as DINO's released code can."""
    ks: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (1, 5, 10)
    """Numbers of ranked images in the mean precision mP@k."""
    max_pictures: Annotated[int, Ge(0), SPEED_ONLY] = 8
    """Number of queries to draw with the images ranked first, evenly spread."""
