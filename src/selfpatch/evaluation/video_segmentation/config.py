"""Settings of video object segmentation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt
from pydantic import PositiveInt

from selfpatch.config.schema import SPEED_ONLY, DataName, settings
from selfpatch.evaluation.config import LayerConfig, LimitConfig

Year = Literal[2016, 2017]
Rounding = Literal["released", "nearest", "up"]
FIRST_MASK = "baseline:first-mask"
"""Name, in place of weights, of the baseline that repeats the first mask in every frame."""
DEFAULT_STRIDE = 16
"""Stride in pixels that the default stage of a network other than a ViT is chosen by: that of the ViT-S/16 rows."""

_DINOV3: dict[str, Any] = {
    "resolution": 960, "resampling": "bicubic", "window": "circle", "temperature": 0.2, "upsample_to": "frame",
    "std": "encoder", "late_objects": False,
}  # fmt: skip


@settings
class DAVISConfig(LayerConfig, LimitConfig):
    """Video object segmentation (DAVIS, YouTube-VOS, MOSE): masks propagated by patch features, scored by J and F.

    `--weights baseline:first-mask` measures the baseline that repeats the first mask.
    """

    data_help: ClassVar[str] = (
        "DAVIS-2016 or -2017 tree, with JPEGImages/, Annotations/ and ImageSets/; or a split of YouTube-VOS or MOSE, "
        "with JPEGImages/, Annotations/ and perhaps meta.json."
    )
    baselines: ClassVar[tuple[str, ...]] = (FIRST_MASK,)
    network_settings: ClassVar[frozenset[str]] = LayerConfig.network_settings | {"grid"}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dino": {},
        # DINOv3 (arXiv 2508.10104), appendix D.5 and Table 27, at the size M of its Table 5. The paper has bilinear
        # masks of the frame's size and sides rounded to the nearest multiple of the patch; its notebook
        # segmentation_tracking.ipynb has nearest ones and sides rounded up. Only the notebook says that frames are
        # resized bicubically and each object's labels scaled to [0, 1]. Its window at sizes other than M is not known.
        "dinov3": {**_DINOV3, "rounding": "nearest", "upsampling": "bilinear"},
        "dinov3_notebook": {**_DINOV3, "rounding": "up", "upsampling": "nearest"},
    }

    preset: Literal["dino", "dinov3", "dinov3_notebook"] = "dino"
    """Preset that the other settings start from. dino: the script that DINO and SelfPatch released. dinov3: DINOv3's
    paper at 960 pixels; use --resolution 840 for patches of 14 pixels. dinov3_notebook: its notebook."""
    results: DataName | None = None
    """Folder of ready-made masks, <sequence>/00000.png, to score instead of a network; needs no weights."""
    stage: Annotated[int, Gt(0)] | None = None
    """Number of the stage of a Swin, ResNet or ConvNeXt to take features from, counted from 1; if not given, the one
    whose stride is nearest to 16 pixels, the last of several."""
    resolution: Annotated[int, Gt(0)] = 480
    """Short side of the frames in pixels."""
    rounding: Rounding = "released"
    """Rounding of the resized frame's sides to multiples of the patch size. released: the short side is floored, and
    the long side floored to a multiple of 64 as in the released script, or of the patch size if that does not divide
    64. nearest: both are rounded (DINOv3's paper). up: the short side first, then the long side in proportion to it
    (its notebook)."""
    resampling: Literal["opencv", "bicubic"] = "opencv"
    """Filter that frames are resized by: bilinear without antialias, level by level as OpenCV in the released script,
    or Pillow's bicubic."""
    radius: Annotated[int, Ge(0)] = 12
    """Radius of the window that context patches are taken from, in patches."""
    window: Literal["square", "circle"] = "square"
    """Shape of the window: at most `radius` rows and columns (DINO), or at most `radius` patches in all directions
    (DINOv3)."""
    topk: Annotated[int, Gt(0)] = 5
    """Number of context patches that a patch takes its label from."""
    context_frames: Annotated[int, Ge(0)] = 7
    """Number of preceding frames used as context in addition to the first frame."""
    temperature: Annotated[float, Gt(0)] = 0.1
    """Softmax temperature over cosine similarities."""
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    """Interpolation of soft labels to pixels."""
    upsample_to: Literal["input", "frame"] = "input"
    """Pixels that soft labels are interpolated to: those of the resized frame, whose mask is then resized to the frame
    (DINO), or those of the frame itself (DINOv3)."""
    std: Literal["released", "encoder"] = "released"
    """Standard deviation that frames are normalised by: `encoder` uses the encoder's own; `released` the released
    script's (0.228, 0.224, 0.225) in place of ImageNet's."""
    max_memory: Annotated[int, Ge(1), SPEED_ONLY] = 512
    """Memory limit in MB for the similarities of patches; changes speed and memory only. Features of the context
    frames and of those in which objects start, one mask per object and the encoder's own memory come on top; none of
    these grows with the clip."""
    year: Year | None = None
    """DAVIS' image set and mask format: one object per clip (2016), or several (2017). Defaults to 2017 if the tree
    has it."""
    sequences: tuple[str, ...] | None = None
    """Sequences to evaluate; defaults to DAVIS' val.txt, or to all videos."""
    sequence_list: DataName | None = None
    """Text file with the sequences to evaluate, one a line, e.g. a part of YouTube-VOS' training set."""
    limit: PositiveInt | None = None
    """Number of sequences, evenly spread; defaults to all. `sequences` names them."""
    late_objects: bool = True
    """Follow objects that start after the first one too (YouTube-VOS and MOSE); DINOv3 ignores them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequences is not None and self.sequence_list is not None:
            raise ValueError("both sequences and sequence_list name sequences; give one of them")

    @property
    def needs_encoder(self) -> bool:
        """False if ready-made masks are scored."""
        return self.results is None
