"""Settings of monocular depth."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from selfpatch.config.schema import SPEED_ONLY, Seed, Workers, settings
from selfpatch.evaluation.config import DenseConfig, LimitConfig


@settings
class DepthConfig(DenseConfig, LimitConfig):
    """Monocular depth (NYU Depth v2): a linear layer on frozen patch features, trained to predict bins of depth.

    RMSE, absolute relative error, a1 and others are means over test images.
    """

    data_help: ClassVar[str] = (
        "NYU Depth v2 with nyu_train.txt and nyu_test.txt (lines: rgb depth focal), or a folder with train/ and test/ "
        "(or val/), each with rgb/ and depth/."
    )
    network_settings: ClassVar[frozenset[str]] = DenseConfig.network_settings | {"patch_size", "blocks"}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # DINOv3: not known are its warm-up (here a third of the steps), its weight decay (here the default of its
        # released code) and its changes of colour but brightness (here those of AdaBins).
        "dinov3": {},
        # DINOv2's linear head on four blocks: its learning rate, schedule and augmentation are not known (here those of
        # dinov3), and its gradient loss is 0 as released.
        "dinov2": {"blocks": 4, "cls_token": True, "batch_norm": False, "upsample": 4},
        "small": {
            "region": "whole", "resolution": 160, "crop": (128, 128), "batch_size": 8, "steps": 200, "warmup": 20,
            "lr": 3e-3,
        },
    }  # fmt: skip

    preset: Literal["dinov3", "dinov2", "small"] = "dinov3"
    """Preset that the other settings start from. dinov3: last patch tokens and a batch norm. dinov2: four blocks with
    CLS token. small: ours, for a few minutes on a CPU."""
    region: Literal["nyu", "whole"] = "nyu"
    """Part of an image that counts: nyu trains inside of the frame of NYU's images of 480 x 640 pixels and scores
    Eigen's window; whole uses all pixels with a depth."""
    resolution: PositiveInt | None = None
    """Short side that images are resized to, in pixels; they keep their size if not given."""
    crop: tuple[PositiveInt, PositiveInt] = (416, 544)
    """Height and width of training crops, in pixels."""
    rotation: NonNegativeFloat = 2.5
    """Largest rotation of half of the training images, in degrees."""
    colour: bool = True
    """Change gamma, brightness and colours of half of the training images."""
    blocks: PositiveInt | None = None
    """Number of blocks of a ViT, evenly spread, whose tokens before any norm are concatenated; if not given, the
    encoder's own patch features."""
    cls_token: bool = False
    """Concatenate each block's CLS token to its patches; needs blocks."""
    batch_norm: bool = True
    """Normalise features by a batch norm before the convolution."""
    upsample: PositiveInt = 1
    """Factor by which features are enlarged."""
    bins: Annotated[int, Ge(2)] = 256
    """Number of depths whose weighted mean is predicted."""
    min_depth: PositiveFloat = 0.001
    """Smallest depth in metres, threshold of the pixels that are scored."""
    max_depth: PositiveFloat = 10.0
    """Largest depth in metres, threshold of the pixels that are trained on and scored."""
    depth_scale: PositiveFloat = 1000.0
    """Number of units of a depth file in a metre."""
    gradient_weight: NonNegativeFloat = 0.0
    """Weight of the gradient loss next to SigLoss."""
    batch_size: PositiveInt = 16
    """Images per step, capped at the number of training images."""
    steps: PositiveInt = 38_400
    """Number of optimizer steps."""
    warmup: NonNegativeInt = 12_800
    """Steps over which the learning rate rises, at most a third of all; a cosine to 0 follows."""
    lr: PositiveFloat = 3e-4
    """Peak learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    clip: NonNegativeFloat = 35.0
    """Largest norm of the gradient; 0 turns clipping off."""
    flip_test: bool = True
    """Average the prediction with that of the mirrored image."""
    align: bool = False
    """Fit scale and shift of each prediction to the truth before it is scored."""
    seed: Seed = 0
    """Random seed of the head, the order and the crops."""
    workers: Workers = 4
    """Number of processes that load training images; changes speed only."""
    max_pictures: Annotated[NonNegativeInt, SPEED_ONLY] = 8
    """Number of test images to draw, evenly spread, each with its depth and the prediction."""

    def __post_init__(self) -> None:
        if self.min_depth >= self.max_depth:
            raise ValueError(f"min_depth is {self.min_depth:g} and max_depth {self.max_depth:g}; use a smaller minimum")
        if self.cls_token and self.blocks is None:
            raise ValueError("cls_token needs the tokens of blocks; give blocks too, e.g. 1 for the last")

    def learned(self) -> dict[str, Any]:
        """Return the settings that decide the trained weights."""
        testing = ("preset", "flip_test", "align")
        return {name: value for name, value in self.recorded().items() if name not in testing}
