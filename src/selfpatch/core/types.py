"""The words everything else is written in.

One legend of letters for the whole project: B images, V views, G / L global / local crops, h x w the patch grid and N =
h*w, D width, K prototypes, H heads, C channels. Lists of views are view-major: all images of view 0, then all of view
1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Views:
    """The crops of one batch, and where in their images they came from.

    Attributes:
        global_crops: [G, B, C, S, S], uint8 as loaded, float once normalised.
        local_crops: [L, B, C, s, s] or None.
        boxes: [V, B, 5] float32: (left, top, width, height, flipped) in pixels of the whole image, globals first.
        masks: [G, B, h, w] bool, True where the student sees the mask token; None unless something needs masks.
        samples: [B] int64 places of the images in the data set.
    """

    global_crops: Tensor
    local_crops: Tensor | None
    boxes: Tensor
    samples: Tensor
    masks: Tensor | None = None

    @property
    def num_global(self) -> int:
        return self.global_crops.shape[0]

    @property
    def batch_size(self) -> int:
        return self.global_crops.shape[1]

    def require_pair(self, method: str) -> None:
        """Raises ValueError where there are not exactly two global crops for `method` to compare."""
        if self.num_global != 2:
            raise ValueError(f"{method} compares 2 global crops of an image, but there are {self.num_global}; make 2")

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Views:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: v.to(device, non_blocking=non_blocking) for k, v in moved.items() if isinstance(v, Tensor)}
        )

    def pin_memory(self) -> Views:
        pinned = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.pin_memory() for k, v in pinned.items() if isinstance(v, Tensor)})


class Tokens(NamedTuple):
    """What a backbone makes of a batch of images."""

    cls: Tensor | None
    """[B, D] the CLS token after the trunk's final norm; None where the trunk has none."""
    patches: Tensor
    """[B, h, w, D] patch tokens after the trunk's final norm, or that of a pool which takes its place; the raw ones
    where there is neither."""
    raw_patches: Tensor
    """[B, h, w, D] output of the last block, before any norm."""


@dataclass(frozen=True)
class EncoderOutput:
    """What one side, student or teacher, makes of the views it saw; view-major.

    Attributes:
        image: [V, B, D] image tokens: the pool's over the patches where there is a pool, else the backbone's own.
        tokens_per_resolution: Tokens of the global crops, [G*B, ...], then of the local ones, [L*B, ...], where they
            were encoded.
        heads: the branch's heads by name.
        pool: the branch's pooling module, or None.
    """

    image: Tensor
    tokens_per_resolution: tuple[Tokens, ...]
    heads: Mapping[str, nn.Module]
    pool: nn.Module | None


@dataclass(frozen=True)
class Needs:
    """What a method or an objective asks of the data and of the teacher. The union of all needs decides what is
    made."""

    local_crops: bool = False
    masks: bool = False
    teacher_on_local_crops: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(**{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Hyperparameters:
    """The scheduled values of one step."""

    step: int
    epoch: int
    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float
    teacher_patch_temp: float
    freeze_last_layer: bool
    freeze_backbone: bool


class Objective(nn.Module):
    """An image-level method or a patch-level objective.

    Parameters of its own (a predictor, say) belong to the student's side only and are trained; what student and teacher
    each need a copy of, the teacher's being the moving average of the student's, comes from `heads` and `pool`.
    """

    Config: ClassVar[type]
    """Settings dataclass of the constructor's argument `config`."""
    needs: ClassVar[Needs] = Needs()
    loss_weights: ClassVar[Mapping[str, float]] = {}
    """Weight of each of its losses by name, where the recipe gives none."""

    def heads(self) -> dict[str, nn.Module]:
        """Fresh heads by name, for the branch to own."""
        return {}

    def pool(self) -> nn.Module | None:
        """A fresh module [..., N, D] -> [..., D] that makes the image token, in place of the CLS token; None: no need
        of one."""
        return None

    def check_grid(self, h: int, w: int) -> None:
        """Raises ValueError where it can learn nothing from views of h x w patches; called before the first step."""

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """The unweighted losses by name."""
        raise NotImplementedError

    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Scalars to watch, from what the teacher made of a batch."""
        return {}


@runtime_checkable
class Encoder(Protocol):
    """A trained network as every evaluation and picture sees it."""

    dim: int
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        """Where images have to be."""
        ...

    def patches(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> patch features [B, D, h, w]; no gradient is kept."""
        ...

    def image(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> image features [B, D]; no gradient is kept."""
        ...
