"""Losses between a student's patches and their targets: over prototypes, by cosine, or by contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, ClassVar, Literal, NamedTuple

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

Heads = tuple[nn.Module, nn.Module]
"""Heads of student and teacher."""


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
        read = AGREEMENTS[self.agreement].reads
        some_read = {name for agreement in AGREEMENTS.values() for name in agreement.reads}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in some_read - {*read} and value != field.default:
                raise ValueError(
                    f"{field.name} is {value!r}, but agreement {self.agreement!r} has no use for it; leave it out, "
                    f"or set what it reads: {', '.join(read)}"
                )


class PatchPairs(NamedTuple):
    """The student's patches of a batch and the teacher's targets of them, n pairs in all.

    They are ordered by resolution, then view, then image, then patch.
    """

    patches: Tensor
    """[n, D]."""
    targets: Tensor
    """[n, D], without gradient."""
    grids: tuple[tuple[int, int], ...]
    """(V*B, N) of each resolution."""
    samples: Tensor
    """[B] indices of the images in the data set."""

    @classmethod
    def of(cls, patches: Sequence[Tensor], targets: Sequence[Tensor], samples: Tensor) -> PatchPairs:
        """Pair the patches and targets of each resolution, [V*B, N, D] each."""
        grids = tuple((len(grid), grid.shape[1]) for grid in patches)
        flat_patches, flat_targets = (torch.cat([grid.flatten(0, 1) for grid in side]) for side in (patches, targets))
        return cls(flat_patches, flat_targets, grids, samples)

    def split(self, values: Tensor) -> list[Tensor]:
        """Split values [n, ...] into [V*B, N, ...] of each resolution."""
        parts = values.split([views * patches for views, patches in self.grids])
        return [part.unflatten(0, grid) for part, grid in zip(parts, self.grids, strict=True)]

    def weights(self) -> Tensor:
        """Return the weight of each pair, [n], in the mean over the patches of a view, then over views.

        Each view has the same weight, whatever its number of patches. The weights add up to 1.
        """
        views = sum(count for count, _ in self.grids)
        parts = [torch.full((count * n,), 1 / (views * n), device=self.targets.device) for count, n in self.grids]
        return torch.cat(parts)


class Agreement(nn.Module):
    """Loss over pairs of patch and target. It owns what only the student has, such as a predictor."""

    reads: ClassVar[tuple[str, ...]]
    """Names of the settings that it reads."""

    def __init__(self, dim: int, config: AgreementConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config

    def head(self) -> nn.Module:
        """Return a fresh head; student and teacher have one each."""
        raise NotImplementedError

    def forward(self, pairs: PatchPairs, heads: Heads, teacher_temp: float, step: int | Tensor) -> Tensor:
        """Return the mean loss of the pairs with their `weights`, a scalar.

        Args:
            pairs: the student's patches and the teacher's targets.
            heads: heads of student and teacher.
            teacher_temp: softmax temperature of the teacher (prototypes only).
            step: number of steps so far (contrast only).
        """
        raise NotImplementedError


class PrototypeAgreement(Agreement):
    """Cross-entropy between the teacher's centred and sharpened distribution over prototypes and the student's.

    The centre is that of all patches of all views. SelfPatch was published with it (arXiv 2206.07990, section 3.2).
    """

    reads = tuple(field.name for field in fields(DINOConfig))

    def __init__(self, dim: int, config: AgreementConfig) -> None:
        super().__init__(dim, config)
        self.loss = CenteredLoss(config.num_prototypes, config.student_temp, config.center_momentum)

    def head(self) -> nn.Module:
        """Return a projection head with prototypes."""
        return PrototypeHead(self.dim, self.config)

    def forward(self, pairs: PatchPairs, heads: Heads, teacher_temp: float, step: int | Tensor) -> Tensor:
        """Return the loss, see `Agreement`."""
        with torch.no_grad():
            targets = heads[1](pairs.targets)
        return self.loss.sum_over_rows(heads[0](pairs.patches), targets, pairs.weights(), teacher_temp)


class ProjectedAgreement(Agreement):
    """Base of agreements without prototypes, between queries and keys of length 1.

    Queries are the student's predictions of its projected patches, keys the teacher's projected targets. Projector and
    predictor have two layers with a batch norm over all patches of all views between them, as MoBY's have for images
    (arXiv 2105.04553).
    """

    reads: ClassVar[tuple[str, ...]] = ("hidden_dim", "bottleneck_dim")

    def __init__(self, dim: int, config: AgreementConfig) -> None:
        super().__init__(dim, config)
        self.predictor = mlp([config.bottleneck_dim, config.hidden_dim, config.bottleneck_dim])

    def head(self) -> nn.Module:
        """Return a projector."""
        return mlp([self.dim, self.config.hidden_dim, self.config.bottleneck_dim])

    def project(self, pairs: PatchPairs, heads: Heads) -> tuple[Tensor, Tensor]:
        """Return queries, and keys without gradient, [n, E] float32 each."""
        with torch.no_grad():
            keys = l2_normalize(heads[1](pairs.targets))
        return l2_normalize(self.predictor(heads[0](pairs.patches))), keys


class CosineAgreement(ProjectedAgreement):
    """Negative cosine -q . k, from -1 to 1.

    Without negatives, predictor and moving average alone prevent collapse, as in BYOL (arXiv 2006.07733).
    """

    def forward(self, pairs: PatchPairs, heads: Heads, teacher_temp: float, step: int | Tensor) -> Tensor:
        """Return the loss, see `Agreement`."""
        queries, keys = self.project(pairs, heads)
        return -(pairs.weights() @ (queries * keys).sum(-1))


class ContrastAgreement(ProjectedAgreement):
    """InfoNCE of q and k with a memory bank of keys of earlier batches.

    The patches of a view are much alike: the fewer of them enter the bank, the more images it represents. Keys enter
    image by image, and no random number selects them, so that neither several processes nor a resumed run change them.
    """

    reads = (*ProjectedAgreement.reads, "temp", "queue_size", "keys_per_view")

    def __init__(self, dim: int, config: AgreementConfig) -> None:
        super().__init__(dim, config)
        self.queue = MemoryBank(config.queue_size, config.bottleneck_dim)

    def forward(self, pairs: PatchPairs, heads: Heads, teacher_temp: float, step: int | Tensor) -> Tensor:
        """Return the loss, see `Agreement`."""
        queries, keys = self.project(pairs, heads)
        loss = pairs.weights() @ info_nce(queries, keys, self.queue.keys, self.config.temp)
        self.queue.accumulate(self.entering(pairs.split(keys), pairs.samples, step))
        return loss

    def entering(self, keys: Sequence[Tensor], samples: Tensor, step: int | Tensor) -> Tensor:
        """Select the keys that enter the memory bank.

        Args:
            keys: [V*B, N, E] of each resolution.
            samples: [B] indices of the images in the data set.
            step: number of steps so far.

        Returns:
            [m, E], all of image 0 first.
        """
        chosen = []
        for grid in keys:
            by_view = grid.unflatten(0, (-1, len(samples)))  # [V, B, N, E]
            patches = key_patches(samples, step, grid.shape[1], self.config.keys_per_view)  # [B, keys_per_view]
            chosen.append(by_view.take_along_dim(patches[None, :, :, None], 2))
        return torch.cat(chosen).transpose(0, 1).flatten(0, 2)


def key_patches(samples: Tensor, step: int | Tensor, num_patches: int, num_keys: int) -> Tensor:
    """Choose the patches of each image that give a key: evenly spaced, and shifted by image and step.

        for b, j:  patches[b, j] = (samples[b] + step + j * N // num_keys) % N

    The same patches for a whole batch would fill the memory bank with what is usually there, a sky or a ground.

    Args:
        samples: [B] indices of the images in the data set.
        step: number of steps so far.
        num_patches: number of patches of a view, N.
        num_keys: number of keys per view.

    Returns:
        [B, num_keys] flat patch indices.

    Raises:
        ValueError: there are fewer patches than keys.
    """
    if num_keys > num_patches:
        raise ValueError(f"keys_per_view is {num_keys}, but a view has {num_patches} patches; use fewer keys")
    spread = torch.arange(num_keys, device=samples.device) * num_patches // num_keys
    return (samples[:, None] + step + spread) % num_patches


AGREEMENTS: dict[str, type[Agreement]] = {
    "prototypes": PrototypeAgreement,
    "cosine": CosineAgreement,
    "contrast": ContrastAgreement,
}
