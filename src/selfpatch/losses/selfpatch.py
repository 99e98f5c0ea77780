"""SelfPatch's loss: a patch learns from the aggregate of its most similar neighbours (CVPR 2022, arXiv 2206.07990)."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal, cast

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.matching import MatchingConfig
from selfpatch.config.schema import settings
from selfpatch.core.text import counted
from selfpatch.losses.center import CenteredLoss
from selfpatch.losses.dino import DINOConfig
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.losses.owned_heads import LossWithHeads
from selfpatch.models.heads import PrototypeHead
from selfpatch.models.layers.mlp import mlp
from selfpatch.models.pooling import AveragePool, ClassAttentionPool, PositivePool, mean_of_positives
from selfpatch.ops.contrast import info_nce, l2_normalize
from selfpatch.ops.neighbours import neighbour_table, top_positives

Grid = tuple[int, int]

SETTINGS_READ: dict[str, tuple[str, ...]] = {
    "prototypes": tuple(field.name for field in fields(DINOConfig)),
    "cosine": ("hidden_dim", "bottleneck_dim"),
    "contrast": ("hidden_dim", "bottleneck_dim", "temp", "queue_size", "keys_per_view"),
}
"""Names of the settings that each agreement reads."""


@settings
class SelfPatchConfig(MatchingConfig, DINOConfig):
    """Settings of SelfPatch: matching, aggregation, and the loss between patches and targets."""

    agreement: Literal["prototypes", "cosine", "contrast"] = "prototypes"
    """Loss between a patch and its target: prototypes (DINO), cosine (MoBY without negatives) or contrast (MoBY)."""
    num_prototypes: PositiveInt = 4096
    """Number of patch prototypes."""
    temp: PositiveFloat = 0.2
    """Softmax temperature of the cosine similarities (contrast only)."""
    queue_size: PositiveInt = 4096
    """Number of patch keys in the memory bank, as in MoBY (contrast only)."""
    keys_per_view: PositiveInt = 1
    """Number of keys that each view of an image adds to the memory bank (contrast only)."""
    aggregation: Literal["attention", "mean"] = "attention"
    """Aggregation of the positives: class `attention`, or their `mean` (the poster's ablation)."""

    def __post_init__(self) -> None:
        read = SETTINGS_READ[self.agreement]
        unread = set().union(*SETTINGS_READ.values()).difference(read)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in unread and value != field.default:
                raise ValueError(
                    f"{field.name} is {value!r}, which is not used with agreement={self.agreement!r}; "
                    f"valid settings: {', '.join(read)}"
                )
        super().__post_init__()


def make_pool(dim: int, num_heads: int, config: SelfPatchConfig) -> PositivePool:
    """Return a fresh pool h; student and teacher have one each."""
    return AveragePool(dim) if config.aggregation == "mean" else ClassAttentionPool(dim, num_heads)


@torch.no_grad()
def patch_targets(patches: Tensor, grid: Grid, pool: PositivePool, config: SelfPatchConfig) -> Tensor:
    """Match and aggregate: return the target y(i) [B, N, D] of each patch.

    Args:
        patches: [B, N, D] the teacher's patches before any norm.
        grid: (h, w) with h * w = N.
        pool: the teacher's pool.
        config: matching.
    """
    table = neighbour_table(*grid, config.window, config.border, patches.device)
    return pool.pool_positives(patches, top_positives(patches, config.k, table))


@torch.no_grad()
def mean_of_neighbours(patches: Tensor, raw_patches: Tensor, config: MatchingConfig) -> Tensor:
    """Return the mean of each patch's positives, the target without a learned aggregation, [B, h, w, D].

    Args:
        patches: [B, h, w, D] the teacher's patches, which are averaged.
        raw_patches: [B, h, w, D] the same before any norm, which are matched.
        config: matching.
    """
    h, w = patches.shape[1:3]
    table = neighbour_table(h, w, config.window, config.border, patches.device)
    positives = top_positives(raw_patches.flatten(1, 2), config.k, table)
    return mean_of_positives(patches.flatten(1, 2), positives).unflatten(1, (h, w))


class Agreement(nn.Module):
    """Loss between patches and targets; it owns what only the student has, such as a predictor.

        prototypes   H(softmax((g_t(y) - c) / teacher_temp), softmax(g_s(x) / student_temp))
        cosine       -cos(q, k)   with q = predict(g_s(x)), k = g_t(y)
        contrast     InfoNCE(q, k, memory bank of keys of earlier batches)

    x is a student's patch, y its target, g the head of each side. SelfPatch was published with prototypes, whose centre
    c averages all patches of all views (arXiv 2206.07990, section 3.2). Otherwise projector and predictor are MoBY's
    (arXiv 2105.04553): two layers with a batch norm between them, here over all patches of all views. With cosine, only
    predictor and moving average prevent collapse, as in BYOL (arXiv 2006.07733).

    Patches of a view are similar, so fewer keys per view represent more images. Keys enter image by image, chosen
    without randomness, so that resuming or using several processes does not change them.
    """

    def __init__(self, dim: int, config: SelfPatchConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.loss: CenteredLoss | None = None
        self.queue: MemoryBank | None = None
        if config.agreement == "prototypes":
            self.loss = CenteredLoss(config.num_prototypes, config)
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
            return -(weights * (queries * keys).sum(-1)).sum()  # autocast would round a product of vectors
        loss = (weights * info_nce(queries, keys, self.queue.keys, self.config.temp)).sum()
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

    Fixed patch positions would bias the bank towards recurring content such as sky.

    Raises:
        ValueError: there are fewer patches than keys.
    """
    if num_keys > num_patches:
        raise ValueError(f"keys_per_view is {num_keys}, but a view has {counted(num_patches, 'patch')}; use fewer keys")
    spread = torch.arange(num_keys, device=samples.device) * num_patches // num_keys
    return (samples[:, None] + step + spread) % num_patches


class SelfPatchLoss(LossWithHeads):
    """Match, aggregate, agree: each patch of the student learns from the teacher's aggregate of its k positives.

        for each view, for each patch i:
            P(i) = the k patches j of the neighbourhood of i with largest cos(f_t(i), f_t(j))
            y(i) = h_t({f_t(j) : j in P(i)})
            loss += agreement_loss(y(i), LN f_s(i))

    f are the patches of the last block, h the pool, LN its final norm. See `Agreement` for the three agreement losses.

    The loss owns pool and patch head of student and teacher, and the centre (or predictor and memory bank). Train
    `criterion.parameters()` together with the student. Add an image-level loss on the image tokens [B, D] that the pool
    makes of patches [B, N, D], `criterion.student["pool"](patches)`: the pool's attention learns from it alone.

    Example:
        >>> criterion = SelfPatchLoss(dim=384, num_heads=6)
        >>> loss = criterion(student_patches, teacher_patches, grid=(14, 14), teacher_temp=0.04)
        >>> loss.backward(), optimizer.step(), criterion.update(momentum=0.996)

    Args:
        dim: width of the patches.
        num_heads: number of attention heads of the pool, usually the backbone's.
        config: matching, aggregation and agreement.
    """

    def __init__(self, dim: int, num_heads: int, config: SelfPatchConfig = SelfPatchConfig()) -> None:
        agreement = Agreement(dim, config)
        super().__init__({"pool": make_pool(dim, num_heads, config), "head": agreement.head()})
        self.config, self.agreement = config, agreement

    def forward(
        self,
        student_patches: Tensor | Sequence[Tensor],
        teacher_patches: Tensor | Sequence[Tensor],
        grid: Grid | Sequence[Grid],
        teacher_temp: float = 0.04,
        samples: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar: the mean over the patches of a view, then over views.

        Args:
            student_patches: [B, N, D] patches of the student's last block, before any norm. With crops of several
                resolutions, one such tensor for each, whose rows are ordered by view, then by image.
            teacher_patches: the teacher's patches of the same views.
            grid: (h, w) with h * w = N; one for each resolution.
            teacher_temp: softmax temperature of the teacher (prototypes only).
            samples: [number of images] indices of the images in the data set. If None, each row is one image (contrast
                only).
        """
        students, teachers = ([x] if isinstance(x, Tensor) else x for x in (student_patches, teacher_patches))
        grids = [cast(Grid, grid)] if isinstance(grid[0], int) else cast(Sequence[Grid], grid)
        if samples is None:
            samples = torch.arange(math.gcd(*map(len, students)), device=students[0].device)
        student_pool, teacher_pool = (cast(PositivePool, side["pool"]) for side in (self.student, self.teacher))
        patches = [student_pool.norm(x) for x in students]
        targets = [patch_targets(x, size, teacher_pool, self.config) for x, size in zip(teachers, grids, strict=True)]
        heads = self.student["head"], self.teacher["head"]
        step = self.num_updates
        return self.agreement(patches, targets, heads, teacher_temp=teacher_temp, samples=samples, step=step)
