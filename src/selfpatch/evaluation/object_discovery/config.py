"""Settings of unsupervised object discovery."""

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from selfpatch.config.schema import SPEED_ONLY, DataName, Name, settings
from selfpatch.evaluation.config import LayerConfig, LimitConfig

Method = Literal["lost", "tokencut", "maskcut", "attention"]


@settings
class ObjectDiscoveryConfig(LayerConfig, LimitConfig):
    """Unsupervised object discovery: boxes from patch features by LOST, TokenCut and MaskCut, scored by CorLoc and AP.

    CorLoc is the share of images whose box, the first one of MaskCut, has an IoU of at least 0.5 with the box of any
    object. AP50, AP and AR are those of COCO without classes, over all boxes.
    """

    data_help: ClassVar[str] = (
        "VOC (Annotations/, ImageSets/, JPEGImages/, perhaps in VOCdevkit/VOC2007/) or COCO (annotations/, train2014/)."
    )
    methods: Annotated[tuple[Method, ...], MinLen(1)] = ("lost", "tokencut")
    """Methods to evaluate; maskcut finds several objects in an image, and attention needs a class token."""
    facet: Literal["key", "query", "value", "token"] | None = None
    """Features for all methods but attention; if not given, keys of a ViT and patch tokens of any other network."""
    centre: bool = False
    """Subtract the image's mean feature for all methods but attention, which ignores a constant that is added to all
    keys; in DINOv2 it is so large that any two patches are similar."""
    block: Annotated[int, Gt(0)] | None = None
    """Block of a ViT to take features and attention from, counted from 1; the last if not given. Tokens of an earlier
    block are before any norm."""
    num_patches: Annotated[int, Gt(0)] = 100
    """Number of patches of lowest degree from which LOST expands its seed."""
    tau: Annotated[float, Ge(-1), Le(1)] = 0.2
    """Cosine similarity above which TokenCut connects two patches."""
    maskcut_tau: Annotated[float, Ge(-1), Le(1)] = 0.15
    """Cosine similarity above which MaskCut connects two patches."""
    tau_quantile: Annotated[float, Gt(0), Lt(1)] | None = None
    """Quantile of the cosines between an image's patches that replaces both taus: 0.5 connects the more similar half of
    all pairs, whatever the network. Not part of TokenCut and MaskCut."""
    max_objects: Annotated[int, Gt(0)] = 3
    """Largest number of objects that MaskCut finds in an image."""
    mass: Annotated[float, Gt(0), Le(1)] = 0.6
    """Share of the attention that attention boxes keep."""
    head: Annotated[int, Ge(0)] | None = None
    """Attention head, counted from 0; the mean of all heads if not given. LOST's comparison with DINO uses 4."""
    split: Name | None = None
    """Split to use; if not given, trainval of VOC; of COCO its only split, or train2014."""
    image_list: DataName | None = None
    """Text file with the images to use, one file name or COCO id per line; LOST's coco_20k_filenames.txt, 19,817 images
    of train2014, makes COCO-20k."""
    hard: bool = True
    """Keep VOC's boxes that are marked difficult or truncated, as LOST does by default."""
    max_pictures: Annotated[int, Ge(0), SPEED_ONLY] = 8
    """Number of images to draw with their boxes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods are {list(self.methods)}; name each method once")
