"""Settings of geometric correspondence on NAVI."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import PositiveInt

from selfpatch.config.schema import SPEED_ONLY, Seed, settings
from selfpatch.evaluation.config import LayerConfig, LimitConfig

Selection = Literal["ratio", "cosine"]


@settings
class NAVIConfig(LayerConfig, LimitConfig):
    """Geometric correspondence (NAVI): points of an object matched between two views by nearest features.

    Recall is the share of matches whose points lie within 1, 2 or 5 cm of each other.
    """

    data_help: ClassVar[str] = "Folder of NAVI with OBJECT/wild_set/{annotations.json, images/, depth/}."
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # The released code of Probe3D (arXiv 2404.08636). The order of its views, which decides its pairs, is that of
        # the files on its disk. It also pads images whose side is no multiple of the patch size (here the nearest
        # multiple is taken), and reads tokens before the final norm.
        "probe3d": {},
        # DINOv3 (arXiv 2508.10104) chooses matches by cosine and averages the three recalls. That the rest is Probe3D's
        # is an assumption.
        "dinov3": {"selection": "cosine"},
        "small": {"resolution": 224, "num_matches": 200},
    }

    preset: Literal["probe3d", "dinov3", "small"] = "probe3d"
    """Preset that the other settings start from. probe3d, dinov3: the protocols of these papers. small: 224 pixels and
    200 matches, for CPUs."""
    resolution: Annotated[int, Ge(8)] = 512
    """Side of the square around the object, in pixels; the network sees the nearest multiple of its patch size."""
    every: PositiveInt = 4
    """Number of views of which one is the first of a pair, in the order of their names."""
    max_angle: Annotated[float, Gt(0), Le(180)] = 120.0
    """Largest angle between the two views of a pair, in degrees."""
    num_matches: PositiveInt = 1000
    """Number of matches of a pair that count, those chosen by `selection`."""
    selection: Selection = "ratio"
    """Matches that count: those of the clearest nearest neighbour (smallest ratio of its cosine distance to that of the
    second), or of the largest cosine."""
    centimetres: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1.0, 2.0, 5.0)
    """Distances in centimetres within which a match is correct."""
    pixels: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (5.0, 25.0, 50.0)
    """Distances in the second view within which a match is correct, for the recalls in pixels."""
    objects: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Objects to evaluate; all if not given."""
    limit: PositiveInt | None = None
    """Number of pairs, evenly spread; defaults to all."""
    seed: Seed = 8
    """Random seed of the pairs."""
    max_pictures: Annotated[int, Ge(0), SPEED_ONLY] = 8
    """Number of pairs to draw, evenly spread; matches are green within the middle one of the centimetres."""
