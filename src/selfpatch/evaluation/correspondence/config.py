"""Settings of semantic correspondence on SPair-71k."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import PositiveInt

from selfpatch.config.schema import SPEED_ONLY, settings
from selfpatch.evaluation.config import LayerConfig, LimitConfig

Sampling = Literal["bilinear", "nearest"]
Places = Literal["patches", "pixels"]


@settings
class CorrespondenceConfig(LayerConfig, LimitConfig):
    """Semantic correspondence (SPair-71k): keypoints transferred to the nearest patch feature of another image.

    PCK is given per image and per point, averaged over categories.
    """

    data_help: ClassVar[str] = "Folder with Layout/, PairAnnotation/ and JPEGImages/, as SPair-71k has them."
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "patch": {},
        # After Amir et al. (arXiv 2112.05814), who resize the shorter side to 224 and also bin neighbours.
        "dense_keys": {
            "facet": "key", "depth": 5 / 6, "stride": 4, "resolution": 304, "shape": "keep", "sampling": "nearest",
        },
        # The released code of DIFT (arXiv 2306.03881) with an encoder in place of the diffusion network.
        "dift": {"resolution": 768, "places": "pixels", "interpolated": "raw"},
        # The released code of Probe3D (arXiv 2404.08636). It also rounds keypoints down to pixels of the resized image,
        # pads images whose side is no multiple of the patch size (here the nearest multiple is taken), and reads tokens
        # before the final norm. Its 200 pairs depend on the order of files on its disk.
        "probe3d": {"resolution": 800, "shape": "pad", "alignment": "corner", "pairs_per_category": 200},
        # DINOv3 (arXiv 2508.10104) states the size. That the rest is Probe3D's, with all pairs, is an assumption.
        "dinov3": {"resolution": 1024, "shape": "pad", "alignment": "corner"},
        "small": {"resolution": 224},
    }  # fmt: skip

    preset: Literal["patch", "dense_keys", "dift", "probe3d", "dinov3", "small"] = "patch"
    """Preset that the other settings start from. patch: the encoder's patch features, images 512 pixels square.
    dense_keys: keys of the tenth of twelve blocks every 4 pixels, longer side 304. dift, probe3d, dinov3: the protocols
    of these papers. small: patch at 224 pixels, for CPUs."""
    facet: Literal["token", "key", "query", "value"] = "token"
    """Features to match: patch tokens, or keys, queries or values of an attention block (ViT only)."""
    depth: Annotated[float, Gt(0), Le(1)] | None = None
    """Block or stage to take features from, as a share of the network's depth; ignored if block or stage is given."""
    stride: Annotated[int, Gt(0)] | None = None
    """Pixels between neighbouring features; divides the layer's own stride (a ViT's patch size), and is that if not
    given."""
    resolution: Annotated[int, Ge(1)] = 512
    """Longer side of the images, in pixels."""
    shape: Literal["square", "keep", "pad"] = "square"
    """Shape of resized images: square, their aspect ratio, rounded to whole patches, or a square that white pixels at
    the right and below complete (Probe3D)."""
    sampling: Sampling = "bilinear"
    """Source feature at a keypoint: interpolated between the patches around it, or the nearest one."""
    places: Places = "patches"
    """Locations in the target that keypoints may be matched to: centres of patches, or all pixels, to which features
    are upsampled bilinearly (DIFT, arXiv 2306.03881)."""
    interpolated: Literal["unit", "raw"] = "unit"
    """Features that are interpolated between patches: of unit length, or as the encoder gives them (DIFT)."""
    alignment: Literal["centre", "corner"] = "centre"
    """Position in the image that a patch stands for: its centre, or, as in Probe3D, its upper left corner in the target
    and the corners of the image for the outermost patches of the source."""
    alphas: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (0.05, 0.1, 0.15)
    """Shares of the longer side within which a keypoint is correct; 0.1 is the standard threshold."""
    threshold: Literal["box", "image"] = "box"
    """Object whose longer side the shares refer to: the target's box, or its image."""
    split: str = "test"
    """Split of the data set: trn, val or test."""
    layout: Literal["large", "small"] | None = None
    """List of pairs to use; if not given, large if the data set has it, else small."""
    categories: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Categories to evaluate; all if not given."""
    pairs_per_category: PositiveInt | None = None
    """Number of pairs of each category, drawn at random, the same in each run; all if not given."""
    limit: PositiveInt | None = None
    """Number of pairs, evenly spread; defaults to all."""
    max_pictures: Annotated[int, Ge(0), SPEED_ONLY] = 8
    """Number of pairs to draw, evenly spread; matches are green if correct at the middle one of the alphas."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.alphas)) < len(self.alphas):
            raise ValueError(f"alphas are {list(self.alphas)}; name each share once, e.g. 0.05 0.1 0.15")
