"""Settings of the fine-tuning evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from selfpatch.config.schema import Fraction, settings
from selfpatch.config.sections import Resampling
from selfpatch.core.text import counted
from selfpatch.evaluation.classification.config import TrainedClassificationConfig

_IBOT = {"token": "image", "lr": 1e-3, "warmup_epochs": 20.0, "resampling": "bilinear"}
# DeiT's fine-tuning as iBOT runs it: 8 processes of 96 images, and learning rates for a batch of 512, so twice ours.
# Tokens and positions decay, because its optimizer asks a network for exemptions that lists none.
_TRANSFER = {
    "token": "image", "epochs": 1000, "batch_size": 768, "lr": 3.75e-6, "min_lr": 1e-5, "layer_decay": 1.0,
    "weight_decay_on": "matrices", "head_std": 0.02, "repeats": 3, "schedule": "epoch",
}  # fmt: skip
_INATURALIST = {**_TRANSFER, "epochs": 360, "erasing": 0.1}
# The same with 8 processes of 128 images, and `--lr 5e-6` for a batch of 512.
_SEMI = {**_TRANSFER, "batch_size": 1024, "lr": 2.5e-6, "head_layers": 1}
_SMALL = {
    "token": "image", "epochs": 30, "batch_size": 64, "lr": 4e-3, "warmup_epochs": 3.0, "layer_decay": 0.75,
    "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "rand_augment": 0.0, "erasing": 0.0, "head_std": 0.02,
}  # fmt: skip


@settings
class FinetuneConfig(TrainedClassificationConfig):
    """Fine-tuning of the whole network on labelled images: top-1 and top-5.

    Presets: `mae` is FINETUNE.md of MAE's released code for a ViT-B (arXiv 2111.06377, table 9), which SERE uses too;
    `sere_small` is the same for its ViT-S, with iBOT's layer decay for a ViT-S, because SERE does not publish its own.
    `ibot` (ViT-B) and `ibot_small` (ViT-S) are run.sh and evaluation/README.md of iBOT's released code (arXiv
    2111.07832). `cifar` (10 and 100), `flowers`, `cars`, `inaturalist` (ViT-B, 2018 and 2019),
    `inaturalist18_small` and `inaturalist19_small` (ViT-S) come from the same files, after DeiT (arXiv 2012.12877), and
    `semi` is their protocol for 1 % and 10 % of ImageNet's labels: use it with `--labels`. `small` is ours, for some
    hundred small images on a CPU. The released code quotes the best epoch on the test set; here the last one counts.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mae": {},
        "ibot": _IBOT,
        "ibot_small": {**_IBOT, "epochs": 200, "layer_decay": 0.75},
        "sere_small": {"layer_decay": 0.75},
        "semi": _SEMI,
        "cifar": _TRANSFER,
        "flowers": _TRANSFER,
        "cars": {**_TRANSFER, "lr": 3.75e-5},
        "inaturalist": _INATURALIST,
        "inaturalist18_small": {**_INATURALIST, "lr": 2.5e-5},
        "inaturalist19_small": {**_INATURALIST, "lr": 1.25e-5},
        "small": _SMALL,
    }

    preset: Literal[
        "mae", "ibot", "ibot_small", "sere_small", "semi", "cifar", "flowers", "cars", "inaturalist",
        "inaturalist18_small", "inaturalist19_small", "small",
    ] = "mae"  # fmt: skip
    """Published protocol whose settings are the defaults."""
    token: Literal["image", "mean"] = "mean"
    """Feature to classify: the image token, or the mean of the raw patches through a fresh norm."""
    head_layers: NonNegativeInt = 0
    """Number of linear layers of the pre-trained projection head that the classifier keeps below its own (image token
    only); all of them include the prototypes. Needs weights with the head of DINO, iBOT, SelfPatch or SERE."""
    resampling: Resampling = "bicubic"
    """Interpolation that test images are resized with; training crops are bicubic."""
    lr: PositiveFloat = 5e-4
    """Learning rate of the head for a batch of 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate of the head at the end."""
    warmup_epochs: NonNegativeFloat = 5.0
    """Number of epochs over which the learning rate rises linearly."""
    schedule: Literal["step", "epoch"] = "step"
    """Change of the learning rate: every step, or every epoch as DeiT's, whose warm-up starts at 1e-6 and whose cosine
    spans the warm-up too."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW."""
    weight_decay_on: Literal["matrices_but_tokens", "matrices"] = "matrices_but_tokens"
    """Parameters that decay: those of two or more dimensions, without or with tokens and position embeddings."""
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
    repeats: PositiveInt = 1
    """Copies of an image in a batch, each augmented by itself (repeated augmentation). An epoch keeps its number of
    steps, and so sees 1/repeats of the images."""
    head_std: PositiveFloat = 2e-5
    """Standard deviation of the head's initial weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} of {counted(self.epochs, 'epoch')}; use 0 or more, but fewer"
            )
        if self.head_layers and self.token != "image":
            raise ValueError(
                f"head_layers is {self.head_layers}, but the projection head is of the image token and token is "
                f"{self.token!r}; use token image"
            )
