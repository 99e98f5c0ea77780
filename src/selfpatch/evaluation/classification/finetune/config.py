"""Settings of the fine-tuning evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, PositiveFloat

from selfpatch.config.schema import Fraction, settings
from selfpatch.evaluation.classification.config import TrainedClassificationConfig

_IBOT = {"token": "image", "lr": 1e-3, "warmup_epochs": 20.0}
# DeiT's fine-tuning as iBOT runs it: 8 processes of 96 images, and learning rates for a batch of 512, so twice ours.
_TRANSFER = {
    "token": "image", "epochs": 1000, "batch_size": 768, "lr": 3.75e-6, "min_lr": 1e-5, "layer_decay": 1.0,
    "head_std": 0.02,
}  # fmt: skip
_SMALL = {
    "token": "image", "epochs": 30, "batch_size": 64, "lr": 4e-3, "warmup_epochs": 3.0, "layer_decay": 0.75,
    "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "rand_augment": 0.0, "erasing": 0.0, "head_std": 0.02,
}  # fmt: skip


@settings
class FinetuneConfig(TrainedClassificationConfig):
    """Fine-tuning of the whole network on labelled images: top-1 and top-5.

    Presets: `mae` is FINETUNE.md of MAE's released code for a ViT-B (arXiv 2111.06377, table 9). `ibot` (ViT-B) and
    `ibot_small` (ViT-S) are run.sh and evaluation/README.md of iBOT's released code (arXiv 2111.07832). `cifar` (10 and
    100), `flowers`, `cars` and `inaturalist` (2018 and 2019) come from the same files, for a ViT-B, after DeiT (arXiv
    2012.12877); for iNaturalist with a ViT-S they give a learning rate of 2.5e-5 (2018) and 1.25e-5 (2019). `small` is
    ours, for some hundred small images on a CPU. Two things are not taken over: DeiT's repeated augmentation, and the
    choice of the best epoch on the test set. The last epoch counts.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mae": {},
        "ibot": _IBOT,
        "ibot_small": {**_IBOT, "epochs": 200, "layer_decay": 0.75},
        "cifar": _TRANSFER,
        "flowers": _TRANSFER,
        "cars": {**_TRANSFER, "lr": 3.75e-5},
        "inaturalist": {**_TRANSFER, "epochs": 360, "erasing": 0.1},
        "small": _SMALL,
    }

    preset: Literal["mae", "ibot", "ibot_small", "cifar", "flowers", "cars", "inaturalist", "small"] = "mae"
    """Published protocol whose settings are the defaults."""
    token: Literal["image", "mean"] = "mean"
    """Feature to classify: the image token, or the mean of the raw patches through a fresh norm."""
    lr: PositiveFloat = 5e-4
    """Learning rate of the head for a batch of 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate of the head at the end."""
    warmup_epochs: NonNegativeFloat = 5.0
    """Number of epochs over which the learning rate rises linearly."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW; norms, biases, other 1-D parameters, tokens and positions have none."""
    layer_decay: Fraction = 0.65
    """Layer-wise learning-rate decay factor."""
    drop_path: Fraction = 0.1
    """Stochastic depth rate of the last block; it rises linearly from 0."""
    mixup: NonNegativeFloat = 0.8
    """Beta distribution parameter of mixup; 0 turns it off. With cutmix on too, a batch sees either."""
    cutmix: NonNegativeFloat = 1.0
    """Beta distribution parameter of cutmix; 0 turns it off."""
    smoothing: Fraction = 0.1
    """Label smoothing, as a share."""
    rand_augment: Annotated[float, Ge(0), Le(10)] = 9.0
    """Magnitude of RandAugment, 0 to 10; 0 turns it off."""
    erasing: Fraction = 0.25
    """Probability that a rectangle of a crop is erased."""
    head_std: PositiveFloat = 2e-5
    """Standard deviation of the head's initial weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; use 0 or more, but fewer"
            )
