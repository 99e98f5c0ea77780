"""What networks are fine-tuned with: published settings by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Token = Literal["image", "mean"]


@dataclass(frozen=True)
class Preset:
    """How a network is fine-tuned; by default as MAE's ViT-B.

    Attributes:
        token: what is classified: the encoder's `image` token, or the `mean` of the raw patches through a fresh norm.
        epochs: over the training images.
        batch_size: images a step; at most those there are.
        lr: of the head, for a batch of 256.
        min_lr: of the head at the end.
        warmup_epochs: over which it rises linearly.
        weight_decay: of AdamW; neither of biases, norms and other 1-D parameters, nor of tokens and positions.
        layer_decay: the learning rate of a layer is this times that of the layer above it.
        drop_path: rate of the last block; it rises linearly from 0.
        mixup, cutmix: parameter of the Beta distribution; 0: off. Where both are on, a batch sees either.
        smoothing: of the labels.
        rand_augment: magnitude, of 10; 0: off.
        erasing: probability that a rectangle is erased.
        head_std: of the head's weights at the start.
    """

    token: Token = "mean"
    epochs: int = 100
    batch_size: int = 1024
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 5
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    rand_augment: float = 9
    erasing: float = 0.25
    head_std: float = 2e-5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use more than 0")
        for name in ("min_lr", "weight_decay", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs; use 0 or more, but fewer")
        for name, largest in (
            ("drop_path", 1),
            ("smoothing", 1),
            ("erasing", 1),
            ("layer_decay", 1),
            ("rand_augment", 10),
        ):
            if not 0 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 to {largest}")


_IBOT = Preset(token="image", lr=1e-3, warmup_epochs=20)
# DeiT's fine-tuning as iBOT runs it: 8 processes of 96 images, and learning rates for a batch of 512, so twice ours.
_TRANSFER = Preset(token="image", epochs=1000, batch_size=768, lr=3.75e-6, min_lr=1e-5, layer_decay=1.0, head_std=0.02)

PRESETS: dict[str, Preset] = {
    "mae": Preset(),
    "ibot": _IBOT,
    "ibot_small": replace(_IBOT, epochs=200, layer_decay=0.75),
    "cifar": _TRANSFER,
    "flowers": _TRANSFER,
    "cars": replace(_TRANSFER, lr=3.75e-5),
    "inaturalist": replace(_TRANSFER, epochs=360, erasing=0.1),
    "small": Preset(
        token="image", epochs=30, batch_size=64, lr=4e-3, warmup_epochs=3, layer_decay=0.75, drop_path=0.0,
        mixup=0.0, cutmix=0.0, rand_augment=0.0, erasing=0.0, head_std=0.02,
    ),
}  # fmt: skip
"""`mae`: FINETUNE.md of MAE's released code, ViT-B (arXiv 2111.06377, table 9). `ibot`, `ibot_small`: run.sh and
evaluation/README.md of iBOT's released code, ViT-B and ViT-S (arXiv 2111.07832). `cifar` (10 and 100), `flowers`,
`cars`, `inaturalist` (2018 and 2019): the same files, ViT-B, after DeiT (arXiv 2012.12877); for iNaturalist with a
ViT-S they give an lr of 2.5e-5 (2018) and 1.25e-5 (2019). `small`: ours, for some hundred small images on a CPU.

Not taken over: DeiT's repeated augmentation, and the best epoch on the test set. The last epoch counts."""
