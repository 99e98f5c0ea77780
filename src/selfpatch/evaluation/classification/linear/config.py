"""Settings of the linear evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Lt, MinLen
from pydantic import PositiveFloat, PositiveInt

from selfpatch.config.schema import settings
from selfpatch.evaluation.classification.config import TrainedClassificationConfig


@settings
class LinearConfig(TrainedClassificationConfig):
    """Linear classification of frozen image features: top-1 and top-5.

    Presets: `dino`, the released code of DINO (arXiv 2104.14294) with 8 processes of 128 images; `sweep`, ours, takes
    minutes: features are encoded once, and the best of 16 learning rates is chosen on held-out training images.
    """

    network_settings: ClassVar[frozenset[str]] = frozenset({"lr", "blocks", "mean_patch"})  # the lr that was best
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dino": {},
        "sweep": {
            "crops": "cached",
            "lrs": (*(m * 10.0**e for e in range(-4, 1) for m in (1, 2, 5)), 10.0),
            "epochs": 50,
            "batch_size": 256,
        },
    }

    preset: Literal["dino", "sweep"] = "dino"
    """Published protocol whose settings are the defaults."""
    blocks: PositiveInt | None = None
    """Number of last ViT blocks whose image tokens are taken; defaults to 4 below a width of 768, else to 1."""
    mean_patch: bool | None = None
    """Append the mean patch feature; defaults to true for a ViT of width 768 or more."""
    crops: Literal["random", "cached"] = "random"
    """Training crops: random crops encoded at every step, or mirrored centre crops, encoded once and standardised."""
    lrs: Annotated[tuple[PositiveFloat, ...], MinLen(1)] = (1e-3,)
    """Learning rates for a batch of 256; of several, the best on held-out training images is used."""
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Share of each class that chooses among several learning rates."""
