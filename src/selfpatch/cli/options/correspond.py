"""Options of the semantic correspondence evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfpatch.cli.options.weights import EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class Correspond(EvaluationOptions):
    """Semantic correspondence (SPair-71k): keypoints carried to the nearest patch feature of another image, PCK per
    image and per point, averaged over categories."""

    evaluation: ClassVar[str] = "correspond"

    data: str
    """Folder with Layout/, PairAnnotation/ and JPEGImages/, as SPair-71k has them."""
    preset: Literal["patch", "dense_keys", "small"] = "patch"
    """Gives the settings that are left open. patch: the encoder's patch tokens, 512 pixels square; dense_keys: keys of
    the tenth of twelve blocks every 4 pixels, longer side 304; small: as patch, 224 pixels."""
    facet: Literal["token", "key", "query", "value"] | None = None
    """Patch tokens, or keys, queries or values of a ViT's block."""
    block: int | None = None
    """Of a ViT, or stage of another network, counted from 1."""
    stride: int | None = None
    """Pixels between features; it divides the patch size."""
    resolution: int | None = None
    """Longer side of the images, in pixels."""
    shape: Literal["square", "keep"] | None = None
    """Resize images to squares, or keep their aspect ratio."""
    sampling: Literal["bilinear", "nearest"] | None = None
    """The source's feature between the patches around a keypoint, or of the nearest one."""
    places: Literal["patches", "pixels"] | None = None
    """Keypoints land on centres of patches, or on any pixel, to which features are enlarged bilinearly (DIFT)."""
    alphas: tuple[float, ...] = (0.05, 0.1, 0.15)
    """Shares of the longer side within which a keypoint is right."""
    threshold: Literal["box", "image"] = "box"
    """Whose longer side: the target's box, or its image."""
    split: str = "test"
    layout: Literal["large", "small"] | None = None
    """None: large where it is there, else small."""
    categories: tuple[str, ...] | None = None
    """Only these; None: all."""
    max_pictures: int = 8
    """Pairs that are drawn."""
