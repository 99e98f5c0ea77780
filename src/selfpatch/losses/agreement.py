"""Losses between a student's patches and their targets: over prototypes, by cosine, or by contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.losses.center import CenteredLoss
from selfpatch.losses.dino import DINOConfig
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.models.heads import PrototypeHead
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.contrast import info_nce, l2_normalize

SETTINGS_READ: dict[str, tuple[str, ...]] = {
    "prototypes": tuple(field.name for field in fields(DINOConfig)),
    "cosine": ("hidden_dim", "bottleneck_dim"),
    "contrast": ("hidden_dim", "bottleneck_dim", "temp", "queue_size", "keys_per_view"),
}
"""Names of the settings that each agreement reads."""


@settings
class AgreementConfig(DINOConfig):
    """Settings of the loss between patches and targets, of which each agreement reads a part."""

    agreement: Literal["prototypes", "cosine", "contrast"] = "prototypes"
    """Loss between a patch and its target: over prototypes as published with DINO, by cosine as with MoBY without
    negatives, or by contrast as with MoBY with negatives."""
    num_prototypes: Annotated[int, Gt(0)] = 4096
    """Number of patch prototypes."""
    temp: Annotated[float, Gt(0)] = 0.2
    """Softmax temperature of the cosine similarities (contrast only)."""
    queue_size: Annotated[int, Gt(0)] = 4096
    """Number of patch keys in the memory bank, as many as in one of MoBY's (contrast only)."""
    keys_per_view: Annotated[int, Gt(0)] = 1
    """Number of keys that each view of an image adds to the memory bank; with 1, many views are represented in it
    (contrast only)."""

    def __post_init__(self) -> None:
        read = SETTINGS_READ[self.agreement]
        unread = set().union(*SETTINGS_READ.values()).difference(read)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in unread and value != field.default:
                raise ValueError(
                    f"{field.name} is {value!r}, but agreement {self.agreement!r} has no use for it; leave it out, "
                    f"or set what it reads: {', '.join(read)}"
                )


class Agreement(nn.Module):
    """Loss between patches and targets; it owns what only the student has, such as a predictor.

        prototypes   H(softmax((g_t(y) - c) / teacher_temp), softmax(g_s(x) / student_temp))
        cosine       -cos(q, k)   with q = predict(g_s(x)), k = g_t(y)
        contrast     InfoNCE(q, k, memory bank of keys of earlier batches)

    x is a student's patch, y its target, g the head of each side. SelfPatch was published with prototypes, whose centre
    c is that of all patches of all views (arXiv 2206.07990, section 3.2). Without them, the heads are projectors, and
    projector and predictor have two layers with a batch norm over all patches of all views between them, as MoBY's have
    for images (arXiv 2105.04553). With cosine, predictor and moving average alone prevent collapse, as in BYOL
    (arXiv 2006.07733).

    The patches of a view are much alike: the fewer of them enter the memory bank, the more images it represents. Keys
    enter image by image, and no random number selects them, so that neither several processes nor a resumed run change
    them.
    """

    def __init__(self, dim: int, config: AgreementConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.loss: CenteredLoss | None = None
        self.queue: MemoryBank | None = None
        if config.agreement == "prototypes":
            self.loss = CenteredLoss(config.num_prototypes, config.student_temp, config.center_momentum)
        else:
            self.predictor = mlp([config.bottleneck_dim, config.hidden_dim, config.bottleneck_dim])
        if config.agreement == "contrast":
            self.queue = MemoryBank(config.queue_size, config.bottleneck_dim)

    def head(self) -> nn.Module:
        """Return a fresh head g, with prototypes or a projector; student and teacher have one each."""
        if self.loss is not None:
            return PrototypeHead(self.dim, self.config)
        return mlp([self.dim, self.config.hidden_dim, self.config.bottleneck_dim])

    def forward(
        self,
        patches: Sequence[Tensor],
        targets: Sequence[Tensor],
        heads: tuple[nn.Module, nn.Module],
        *,
        teacher_temp: float,
        samples: Tensor,
        step: int | Tensor,
    ) -> Tensor:
        """Return the loss, a scalar: the mean over the patches of a view, then over views.

        Args:
            patches: [V*B, N, D] the student's patches of each resolution, ordered by view, then by image.
            targets: [V*B, N, D] the teacher's targets of them, which take no gradient.
            heads: heads of student and teacher.
            teacher_temp: softmax temperature of the teacher (prototypes only).
            samples: [B] indices of the images in the data set (contrast only).
            step: number of steps so far (contrast only).
        """
        student_rows, teacher_rows = (torch.cat([grid.flatten(0, 1) for grid in grids]) for grids in (patches, targets))
        weights = patch_weights(targets)
        with torch.no_grad():
            wanted = heads[1](teacher_rows)
        predicted = heads[0](student_rows)
        if self.loss is not None:
            return self.loss.sum_over_rows(predicted, wanted, weights, teacher_temp)
        queries, keys = l2_normalize(self.predictor(predicted)), l2_normalize(wanted)  # [n, E]
        if self.queue is None:
            return -(weights @ (queries * keys).sum(-1))
        loss = weights @ info_nce(queries, keys, self.queue.keys, self.config.temp)
        self.queue.accumulate(self._entering_keys(keys, targets, samples, step))
        return loss

    def _entering_keys(self, keys: Tensor, targets: Sequence[Tensor], samples: Tensor, step: int | Tensor) -> Tensor:
        """Select from the keys [n, E] of all targets those that enter the memory bank, [m, E], image by image."""
        chosen = []
        parts = keys.split([grid.shape[:2].numel() for grid in targets])
        for part, num_patches in zip(parts, (grid.shape[1] for grid in targets), strict=True):
            by_view = part.unflatten(0, (-1, len(samples), num_patches))  # [V, B, N, E]
            patches = key_patches(samples, step, num_patches, self.config.keys_per_view)  # [B, keys_per_view]
            chosen.append(by_view.take_along_dim(patches[None, :, :, None], 2))
        return torch.cat(chosen).transpose(0, 1).flatten(0, 2)


def patch_weights(grids: Sequence[Tensor]) -> Tensor:
    """Return the weight [n] of each patch of grids [V*B, N, D] in the mean over the patches of a view, then over views.

    Each view has the same weight, whatever its number of patches. The weights add up to 1.
    """
    num_views = sum(map(len, grids))
    parts = [torch.full(grid.shape[:2], 1 / (num_views * grid.shape[1]), device=grid.device) for grid in grids]
    return torch.cat([part.flatten() for part in parts])


def key_patches(samples: Tensor, step: int | Tensor, num_patches: int, num_keys: int) -> Tensor:
    """Choose the patches [B, num_keys] of each image that give a key: evenly spaced, and shifted by image and step.

        for b, j:  patches[b, j] = (samples[b] + step + j * N // num_keys) % N

    The same patches for a whole batch would fill the memory bank with what is usually there, a sky or a ground.

    Raises:
        ValueError: there are fewer patches than keys.
    """
    if num_keys > num_patches:
        raise ValueError(f"keys_per_view is {num_keys}, but a view has {num_patches} patches; use fewer keys")
    spread = torch.arange(num_keys, device=samples.device) * num_patches // num_keys
    return (samples[:, None] + step + spread) % num_patches
