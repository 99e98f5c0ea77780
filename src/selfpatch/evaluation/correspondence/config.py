"""Named ways to match patches; what a preset leaves open the user may set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Facet = Literal["token", "key", "query", "value"]


@dataclass(frozen=True)
class Matching:
    """What is matched.

    Attributes:
        facet: patch tokens, or keys, queries or values of a block's attention.
        depth: share of the blocks to go through; None: all, and tokens are then the encoder's own, after its norm.
        block: of a ViT, or stage of another network, counted from 1, in place of `depth`.
        stride: distance in pixels of the places that have a feature; None: the patch size.
        resolution: longer side of the images in pixels.
        shape: `square` changes the aspect ratio, `keep` keeps it but for rounding to whole patches.
        sampling: of the source feature at a keypoint: `bilinear` between the patches around it, or of the `nearest`.
        places: where a keypoint can land: on the centres of the target's `patches`, or on any of its `pixels`, to which
            features are enlarged bilinearly (DIFT, arXiv 2306.03881).
    """

    facet: Facet = "token"
    depth: float | None = None
    block: int | None = None
    stride: int | None = None
    resolution: int = 512
    shape: Literal["square", "keep"] = "square"
    sampling: Literal["bilinear", "nearest"] = "bilinear"
    places: Literal["patches", "pixels"] = "patches"

    def __post_init__(self) -> None:
        known = {
            "facet": ("token", "key", "query", "value"),
            "shape": ("square", "keep"),
            "sampling": ("bilinear", "nearest"),
            "places": ("patches", "pixels"),
        }
        for name, words in known.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of: {', '.join(words)}")
        if self.resolution < 1:
            raise ValueError(f"resolution is {self.resolution}; use e.g. 512")


PRESETS: dict[str, Matching] = {
    "patch": Matching(),
    "dense_keys": Matching(facet="key", depth=5 / 6, stride=4, resolution=304, shape="keep", sampling="nearest"),
    "small": Matching(resolution=224),
}
"""`patch`: the encoder's patch features as they are. `dense_keys`: keys of the tenth of twelve blocks every 4 pixels,
after Amir et al. (arXiv 2112.05814), who resize the shorter side to 224 and also bin neighbours, which is left out.
`small`: as `patch`, for a minute on a processor."""
