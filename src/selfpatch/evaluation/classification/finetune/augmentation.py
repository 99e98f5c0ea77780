"""Augmentation of training images: random crops, RandAugment, random erasing, mixup and cutmix."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp, rand_augment_ops
from torch import Tensor
from torchvision.transforms import functional as tvf
from torchvision.transforms import v2

from selfpatch.core.distributed import all_gather, is_distributed, rank
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view
from selfpatch.data.augment.pillow import render
from selfpatch.evaluation.classification.dataset import LabelledImages
from selfpatch.ops.images import normalise

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
    "TranslateXRel", "TranslateYRel",
)  # fmt: skip
"""Operations of RandAugment by timm's names; the increasing ones change more at a higher magnitude (`inc1`)."""


@dataclass(frozen=True)
class AugmentedImages:
    """Random resized crop (bicubic) and flip, RandAugment, normalisation, random erasing.

    All random numbers come from the generator that a sample is loaded with. torch's global random state, which
    torchvision draws from, is seeded from it while a sample is made, and restored.
    """

    images: LabelledImages
    recipe: ViewRecipe
    mean: Sequence[float]
    std: Sequence[float]
    magnitude: float
    """Magnitude of RandAugment, 0 to 10; 0 turns it off."""
    erasing: float
    """Probability that a rectangle of 2 % to a third of the crop becomes normal noise."""

    def __call__(self, i: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Return the i-th image, normalised float [C, S, S], and its label."""
        picture = self.images.read(i, len(self.mean))
        view = render(picture, self.recipe.size, draw_view(self.recipe, picture.size, rng))
        erase = v2.RandomErasing(self.erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random")
        if self.magnitude:
            view = rand_augment(view, self.magnitude, rng, fill=[255 * m for m in self.mean])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return erase(normalise(view, self.mean, self.std)), int(self.images.labels[i])


def rand_augment(image: Tensor, magnitude: float, rng: np.random.Generator, *, fill: Sequence[float]) -> Tensor:
    """Apply RandAugment (arXiv 1909.13719) as timm's `rand-m9-mstd0.5-inc1`, with which DeiT, MAE and iBOT train.

        twice:
            choose one of OPERATIONS
            with probability 1/2:
                apply it at a magnitude drawn from normal(magnitude, 0.5), between 0 and 10

    The image is uint8 [3, S, S]; `fill`, 0 to 255, is the colour of pixels that come in at the border. All random
    numbers come from `rng`. Python's global random state, which timm draws from, is restored.
    """
    picture = tvf.to_pil_image(image)
    state = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        operations = _operations(magnitude, tuple(min(255, round(value)) for value in fill))
        for number in rng.integers(len(operations), size=2):
            picture = operations[number](picture)
    finally:
        random.setstate(state)
    return tvf.pil_to_tensor(picture)


@cache
def _operations(magnitude: float, fill: tuple[int, ...]) -> list[AugmentOp]:
    settings = {"magnitude_std": 0.5, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    operations = rand_augment_ops(magnitude, prob=0.5, hparams=settings, transforms=list(OPERATIONS))
    operations[OPERATIONS.index("PosterizeIncreasing")].aug_fn = _posterize
    return operations


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep some bits of each colour; none at the magnitude 10, which Pillow refuses now but made black before."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


class Mixing:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899) of a batch, each half of the time where both are on.

    Each of several processes holds a part of the batch, and all are in the same random state.

    `mixup` and `cutmix` are parameters of the Beta distributions that shares are drawn from; 0 turns one off.
    """

    def __init__(self, num_classes: int, *, mixup: float, cutmix: float) -> None:
        self.num_classes = num_classes
        chosen = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._transforms = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in chosen if alpha]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix float images [B, C, S, S]; return them and targets [B, K], whose rows sum to 1, for int64 labels [B]."""
        if not self._transforms:
            return images, F.one_hot(labels, self.num_classes).to(images.dtype)
        transform = self._transforms[int(torch.randint(len(self._transforms), ()))]
        if not is_distributed():
            return transform(images, labels)
        # A sample is mixed with the one before it; that of the first one is the last of the process before.
        images, targets = transform(*(torch.cat([all_gather(x[-1:])[rank() - 1], x]) for x in (images, labels)))
        return images[1:], targets[1:]
