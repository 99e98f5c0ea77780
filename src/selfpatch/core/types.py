"""Core data types and protocols.

One legend of letters for the whole project:

- B images of a batch; V views of an image, of them G global and L local crops
- C channels; H x W pixels of an image; S x S', s x s' pixels of global and local crops
- h x w patches of an image, N = h * w; D width of the tokens
- K prototypes; H heads

Tensors of views are view-major: all images of view 0, then all images of view 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from selfpatch.core.transfer import to_device


@dataclass(frozen=True)
class Views:
    """Crops of one batch, and their positions in the images."""

    global_crops: Tensor  # [G, B, C, S, S'] uint8 as loaded, float once normalised; G is 0 if nothing needs any
    local_crops: Tensor | None  # [L, B, C, s, s']
    boxes: Tensor  # [V, B, 5] float32 (left, top, width, height, flipped) in pixels of the whole image, globals first
    samples: Tensor  # [B] int64 indices of the images in the data set
    masks: Tensor | None = None  # [G, B, h, w] bool, True where the student sees the mask token, if anything needs it
    clean_crops: Tensor | None = None  # [P, B, C, S, S'] for the teacher, without changes of colour
    contained_crops: Tensor | None = None  # [Q, B, C, s, s'] for the student, crop i inside clean crop i mod P
    pair_boxes: Tensor | None = None  # [P + Q, B, 5] positions of clean and contained crops, as `boxes`
    anchor_crops: Tensor | None = None  # [G, B, C, S, S'] the global crops as the anchor sees them, if otherwise

    @property
    def num_global(self) -> int:
        """Number of global crops G."""
        return self.global_crops.shape[0]

    @property
    def batch_size(self) -> int:
        """Number of images B."""
        return len(self.samples)

    @property
    def device(self) -> torch.device:
        """Device of the crops."""
        return self.samples.device

    def require_pair(self, method: str) -> None:
        """Raise ValueError unless there are exactly two global crops for `method` to compare."""
        if self.num_global != 2:
            raise ValueError(f"{method} compares 2 global crops of an image, but there are {self.num_global}; make 2")

    def to(self, device: torch.device | str) -> "Views":
        """Return the views on a device."""
        return replace(self, **{name: to_device(tensor, device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class Tokens(NamedTuple):
    """Output of a backbone for a batch of images."""

    cls: Tensor | None  # [B, D] CLS token after the trunk's final norm; None if the trunk has none
    patches: Tensor
    """[B, h, w, D] patch tokens after the final norm of the trunk, or of the pool that replaces it, else raw."""
    raw_patches: Tensor  # [B, h, w, D] output of the last block, before any norm
    class_attention: Tensor | None = None
    """[B, H, h, w] the CLS token's attention in the last block, if the backbone keeps it."""


@dataclass(frozen=True)
class EncoderOutput:
    """Output of one side, student or teacher, for the views it saw; view-major."""

    image: Tensor  # [V, B, D] image tokens: the pool's if there is a pool, else the backbone's own
    tokens_per_resolution: tuple[Tokens, ...]  # global crops [G*B, ...], then local ones [L*B, ...] if encoded
    heads: Mapping[str, nn.Module]
    pool: nn.Module | None
    pair_tokens: Tokens | None = None  # of contained crops [Q*B, ...] (student) or clean ones [P*B, ...] (teacher)


@dataclass(frozen=True)
class Needs:
    """Inputs that a method or objective requires; the loader and the teacher produce the union of all."""

    global_crops: bool = True
    local_crops: bool = False
    pairs: bool = False
    masks: bool = False
    teacher_on_global_crops: bool = True
    teacher_on_local_crops: bool = False
    class_attention: bool = False  # the teacher's `Tokens.class_attention`
    anchor: bool = False  # the objective's teacher is the frozen anchor, see `Objective.forward`

    @property
    def teacher_encodes(self) -> bool:
        """True if the teacher sees any crops."""
        return self.teacher_on_global_crops or self.teacher_on_local_crops or self.pairs

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(**{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Hyperparameters:
    """Scheduled values of one step."""

    step: int
    epoch: int
    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float
    teacher_patch_temp: float
    freeze_last_layer: bool
    freeze_backbone: bool


Losses = dict[str, Tensor]
"""Unweighted losses, scalars, by name."""


class Objective(nn.Module):
    """Image-level method or patch-level objective.

    The constructor takes `config` and any of `dim` (width of the tokens), `num_heads` (of the backbone), `num_local`
    (local crops per image), `batch_size` (images per step over all processes), `seed` (of the run) and `anchor_dim`
    (width of the anchor).

    Its own parameters, e.g. a predictor's, are trained with the student. Return from `heads()` and `pool()` the modules
    that need an EMA copy in the teacher.
    """

    Config: ClassVar[type]
    """Settings dataclass of the constructor's argument `config`."""
    needs: ClassVar[Needs] = Needs()
    loss_weights: ClassVar[Mapping[str, float]] = {}
    """Default weight of each loss by name."""

    def heads(self) -> dict[str, nn.Module]:
        """Return fresh heads by name, for the branch to own."""
        return {}

    def pool(self) -> nn.Module | None:
        """Return a fresh module [..., N, D] -> [..., D] that makes the image token, in place of CLS, or None."""
        return None

    def start_teacher(self, heads: Mapping[str, nn.Module]) -> None:
        """Change the heads of a new teacher, which start as copies of the student's; called before the first step."""

    def check_grid(self, crops: str, h: int, w: int) -> None:
        """Raise ValueError if crops of h x w patches are too small to learn from; called before the first step.

        `crops` is the name of these crops in `Views`; only those that the objective needs are checked.
        """

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return the unweighted losses by name.

        `teacher` is the output of the moving average, or of the frozen anchor if the objective `needs` it.
        """
        raise NotImplementedError

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the value of each loss for uniform predictions on a batch, e.g. log K, where a loss has one.

        A loss that stays there has taught nothing yet.
        """
        return {}

    def meters(self, teacher: EncoderOutput, hp: Hyperparameters) -> dict[str, Tensor]:
        """Return scalars to watch, computed from the teacher's output for a batch."""
        return {}


@runtime_checkable
class Encoder(Protocol):
    """Trained network as every evaluation and picture sees it."""

    dim: int
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        """Device that images must be on."""
        ...

    def patches(self, images: Tensor) -> Tensor:
        """Return patch features [B, D, h, w] of normalised images [B, C, H, W], without gradient."""
        ...

    def image(self, images: Tensor) -> Tensor:
        """Return image features [B, D] of normalised images [B, C, H, W], without gradient."""
        ...
