"""SelfPatch's loss: a patch learns from the aggregate of its most similar neighbours (CVPR 2022, arXiv 2206.07990)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from annotated_types import Gt
from torch import Tensor

from selfpatch.config.schema import settings
from selfpatch.losses.agreement import Agreement, AgreementConfig
from selfpatch.losses.owned_heads import LossWithHeads
from selfpatch.models.pooling import AveragePool, ClassAttentionPool, PositivePool
from selfpatch.ops.neighbours import Border, Window, check_matching, neighbour_table, top_positives

Grid = tuple[int, int]


@settings
class SelfPatchConfig(AgreementConfig):
    """Settings of SelfPatch: matching, aggregation, and the loss between patches and targets."""

    k: Annotated[int, Gt(0)] = 4
    """Number of positives per patch."""
    window: Window = 3
    """Side of the square neighbourhood in patches, an odd number from 3 on, or `all` for every other patch."""
    border: Border = "wrap"
    """Neighbourhood at the border of the image: `wrap` around it as the released code does, or `clip` to it."""
    aggregation: Literal["attention", "mean"] = "attention"
    """Aggregation of the positives: class `attention`, or their `mean` (the poster's ablation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_matching(self.k, self.window, self.border)


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


class SelfPatchLoss(LossWithHeads):
    """Match, aggregate, agree: each patch of the student learns from the teacher's aggregate of its k positives.

        for each view, for each patch i:
            P(i) = the k patches j of the neighbourhood of i with largest cos(f_t(i), f_t(j))
            y(i) = h_t({f_t(j) : j in P(i)})
            loss += disagreement(y(i), LN f_s(i))

    f are the patches of the last block, h the pool, LN its final norm. See `Agreement` for the three disagreements.

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
            samples: [number of images] indices of the images in the data set. If None, each row of the tensors counts
                as an image of its own (contrast only).
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
