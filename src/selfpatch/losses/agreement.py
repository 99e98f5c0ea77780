"""How a patch of the student is held against its target: by prototypes, by cosine, or by contrast."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.core.types import Hyperparameters
from selfpatch.losses.center import Center
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.models.heads import PrototypeHead
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.contrast import info_nce
from selfpatch.ops.cross_entropy import prototype_loss


class PatchPairs(NamedTuple):
    """The student's patches of a batch and the teacher's targets of them, n in all: for each resolution, each view of
    it, each image and each patch, one after the other."""

    patches: Tensor
    """[n, D]."""
    targets: Tensor
    """[n, D], without gradient."""
    grids: tuple[tuple[int, int], ...]
    """Of each resolution (V*B, N)."""
    samples: Tensor
    """[B] places of the images in the data set."""

    @classmethod
    def of(cls, patches: Sequence[Tensor], targets: Sequence[Tensor], samples: Tensor) -> PatchPairs:
        """From [V*B, N, D] of each resolution."""
        shapes = tuple((len(grid), grid.shape[1]) for grid in patches)
        own, aims = (torch.cat([grid.flatten(0, 1) for grid in grids]) for grids in (patches, targets))
        return cls(own, aims, shapes, samples)

    def split(self, values: Tensor) -> list[Tensor]:
        """[n, ...] -> [V*B, N, ...] of each resolution."""
        parts = values.split([views * patches for views, patches in self.grids])
        return [part.unflatten(0, grid) for part, grid in zip(parts, self.grids, strict=True)]

    def weights(self) -> Tensor:
        """[n] what each pair weighs in the mean over the patches of a view, then over views: each view weighs the same,
        however small; they add up to 1."""
        views = sum(count for count, _ in self.grids)
        each = [torch.full((count * n,), 1 / (views * n), device=self.targets.device) for count, n in self.grids]
        return torch.cat(each)


class Agreement(nn.Module):
    """A loss over pairs of patch and target. What only the student has, a predictor, is the agreement's own."""

    def head(self) -> nn.Module:
        """A fresh head, of which student and teacher have one each."""
        raise NotImplementedError

    def forward(self, pairs: PatchPairs, student: nn.Module, teacher: nn.Module, hp: Hyperparameters) -> Tensor:
        """The mean of the pairs' losses, by their `weights`, a scalar; by the heads of student and teacher."""
        raise NotImplementedError


class PrototypeAgreement(Agreement):
    """Cross-entropy between the teacher's centred and sharpened distribution over prototypes and the student's, as in
    DINO: what SelfPatch was published with (arXiv 2206.07990, section 3.2)."""

    def __init__(
        self,
        dim: int,
        *,
        num_prototypes: int,
        hidden_dim: int,
        bottleneck_dim: int,
        head_norm: bool,
        norm_last_layer: bool,
        student_temp: float,
        center_momentum: float,
    ) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center = Center(num_prototypes, center_momentum)
        self._make_head = partial(
            PrototypeHead,
            dim,
            num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            norm=head_norm,
            trainable_gain=not norm_last_layer,
        )

    def head(self) -> nn.Module:
        return self._make_head()

    def forward(self, pairs: PatchPairs, student: nn.Module, teacher: nn.Module, hp: Hyperparameters) -> Tensor:
        """See `Agreement`. The centre is that of all patches of all views."""
        with torch.no_grad():
            scores = teacher(pairs.targets)
            self.center.accumulate(scores.mean_logits())
        return prototype_loss(
            student(pairs.patches),
            scores,
            self.center.center,
            student_temp=self.student_temp,
            teacher_temp=hp.teacher_temp,
            weights=pairs.weights(),
        )


class ProjectedAgreement(Agreement):
    """What agreements without prototypes share: queries q, the student's predictions of its projected patches, and keys
    k, the teacher's projected targets, all of norm 1.

    Projector and predictor have two layers with a batch norm over all patches of all views between, as MoBY's for
    images (arXiv 2105.04553).
    """

    def __init__(self, dim: int, *, hidden_dim: int, bottleneck_dim: int) -> None:
        super().__init__()
        self._make_head = partial(mlp, [dim, hidden_dim, bottleneck_dim])
        self.predictor = mlp([bottleneck_dim, hidden_dim, bottleneck_dim])

    def head(self) -> nn.Module:
        return self._make_head()

    def project(self, pairs: PatchPairs, student: nn.Module, teacher: nn.Module) -> tuple[Tensor, Tensor]:
        """Queries, and keys without gradient: [n, E] float32."""
        with torch.no_grad():
            keys = F.normalize(teacher(pairs.targets).float(), dim=-1)
        return F.normalize(self.predictor(student(pairs.patches)).float(), dim=-1), keys


class CosineAgreement(ProjectedAgreement):
    """The negative cosine -q . k. Without negatives, predictor and moving average alone stand against collapse, as in
    BYOL (arXiv 2006.07733)."""

    def forward(self, pairs: PatchPairs, student: nn.Module, teacher: nn.Module, hp: Hyperparameters) -> Tensor:
        """See `Agreement`; from -1 to 1."""
        queries, keys = self.project(pairs, student, teacher)
        return -(pairs.weights() @ (queries * keys).sum(-1))


class ContrastAgreement(ProjectedAgreement):
    """InfoNCE of q and k against a queue of keys of earlier batches.

    The patches of a view are much alike: the fewer of them enter, the more images a queue of one size speaks for. Keys
    enter image by image, and no random number says which, so that neither processes nor a resumed run change them.

    Args:
        queue_size: keys kept; where a step brings more, those of its last images.
        keys_per_view: keys that enter of each view of an image, those at `key_places`.
    """

    def __init__(
        self, dim: int, *, hidden_dim: int, bottleneck_dim: int, temp: float, queue_size: int, keys_per_view: int
    ) -> None:
        super().__init__(dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim)
        self.temp, self.keys_per_view = temp, keys_per_view
        self.queue = MemoryBank(queue_size, bottleneck_dim)

    def forward(self, pairs: PatchPairs, student: nn.Module, teacher: nn.Module, hp: Hyperparameters) -> Tensor:
        """See `Agreement`."""
        queries, keys = self.project(pairs, student, teacher)
        loss = pairs.weights() @ info_nce(queries, keys, self.queue.keys, self.temp)
        self.queue.accumulate(self.entering(pairs.split(keys), pairs.samples, hp.step))
        return loss

    def entering(self, keys: Sequence[Tensor], samples: Tensor, step: int) -> Tensor:
        """Of the keys [V*B, N, E] of each resolution those that enter the queue, [m, E], all of image 0 first."""
        chosen = []
        for grid in keys:
            by_view = grid.unflatten(0, (-1, len(samples)))  # [V, B, N, E]
            places = key_places(samples, step, grid.shape[1], self.keys_per_view)  # [B, keys_per_view]
            chosen.append(by_view.take_along_dim(places[None, :, :, None], 2))
        return torch.cat(chosen).transpose(0, 1).flatten(0, 2)


def key_places(samples: Tensor, step: int, num_patches: int, count: int) -> Tensor:
    """Which patches of each image give a key: evenly spaced ones, elsewhere in each image and at each step,

        for b, j:  places[b, j] = (samples[b] + step + j * N // count) % N

    as one place for a whole batch would fill the queue with what is usually there, a sky or a ground.

    Args:
        samples: [B] places of the images in the data set.

    Returns:
        [B, count] flat patch indices.

    Raises:
        ValueError: there are fewer patches than keys asked for.
    """
    if count > num_patches:
        raise ValueError(f"selfpatch.keys_per_view is {count}, but a view has {num_patches} patches; use fewer")
    spread = torch.arange(count, device=samples.device) * num_patches // count
    return (samples[:, None] + step + spread) % num_patches


AGREEMENTS: dict[str, type[Agreement]] = {
    "prototypes": PrototypeAgreement,
    "cosine": CosineAgreement,
    "contrast": ContrastAgreement,
}


def make_agreement(name: str, dim: int, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Agreement:
    """The agreement of a name, with those of the settings that it reads.

    Raises:
        ValueError: the name is unknown, or a setting that it does not read differs from its default.
    """
    if name not in AGREEMENTS:
        raise ValueError(f"selfpatch.agreement is {name!r}; use one of: {', '.join(AGREEMENTS)}")
    read = [key for key in inspect.signature(AGREEMENTS[name]).parameters if key in settings]
    for key, value in settings.items():
        if key not in read and value != defaults[key]:
            raise ValueError(
                f"selfpatch.{key} is {value!r}, but agreement {name!r} has no use for it; leave it out, "
                f"or set what it reads: {', '.join(read)}"
            )
    return AGREEMENTS[name](dim, **{key: settings[key] for key in read})
