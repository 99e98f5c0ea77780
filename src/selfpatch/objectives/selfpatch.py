"""SelfPatch: a patch learns from the aggregate of its most similar neighbours (CVPR 2022, arXiv 2206.07990)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from selfpatch.nn.heads import AveragePool, Center, ClassAttentionPool, PositivePool, PrototypeHead
from selfpatch.ops.cross_entropy import soft_cross_entropy, teacher_distribution
from selfpatch.ops.neighbours import Border, Window, check_matching, neighbour_table, top_positives
from selfpatch.types import Encoding, Hyperparameters, Needs, Objective, Tokens, Views


class SelfPatch(Objective):
    """The loss of patch i is the cross-entropy between the teacher's distribution of y(i), the aggregate of the k
    neighbours most similar to i, and the student's distribution of its own, normalised f(i):

        for each view, for each patch i:
            P(i) = the k patches j of the neighbourhood of i with largest cos(f_t(i), f_t(j))
            y(i) = h_t({f_t(j) : j in P(i)})
            loss += H(softmax((g_t(y(i)) - c) / tau_t), softmax(g_s(LN f_s(i)) / tau_s))

    Teacher and student see the same view, local crops too. h also gives the image token, in place of a CLS token.

    Args:
        dim, num_heads: of the backbone.
        k: positives a patch.
        window: side of the neighbourhood, or `all`.
        border: `wrap` around the image as the released code does, or `clip` to it.
        aggregation: h by class `attention`, or by the `mean` (the poster's ablation).
    """

    needs: ClassVar[Needs] = Needs(teacher_on_local_crops=True)
    loss_weights: ClassVar[Mapping[str, float]] = {"patch": 0.1}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        k: int = 4,
        window: Window = 3,
        border: Border = "wrap",
        aggregation: Literal["attention", "mean"] = "attention",
        num_prototypes: int = 4096,
        hidden: int = 2048,
        bottleneck: int = 256,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        check_matching(k, window, border)
        if aggregation not in ("attention", "mean"):
            raise ValueError(f"selfpatch.aggregation is {aggregation!r}; use 'attention' or 'mean'")
        self.k, self.window, self.border = k, window, border
        self.student_temp = student_temp
        self.center = Center(num_prototypes, center_momentum)
        self._make_pool = (
            partial(ClassAttentionPool, dim, num_heads) if aggregation == "attention" else partial(AveragePool, dim)
        )
        self._make_head = partial(
            PrototypeHead,
            dim,
            num_prototypes,
            hidden=hidden,
            bottleneck=bottleneck,
            norm=head_norm,
            trainable_gain=not norm_last_layer,
        )

    def heads(self) -> dict[str, nn.Module]:
        return {"patch": self._make_head()}

    def pool(self) -> PositivePool:
        return self._make_pool()

    def forward(self, student: Encoding, teacher: Encoding, views: Views, hp: Hyperparameters) -> dict[str, Tensor]:
        """`{"patch": loss}`, the mean over the patches of a view, then over views."""
        assert isinstance(student.pool, PositivePool)
        assert isinstance(teacher.pool, PositivePool)
        with torch.no_grad():
            targets = [self.targets(tokens, teacher.pool).flatten(0, 1) for tokens in teacher.grids]
            scores = teacher.heads["patch"](torch.cat(targets))  # over all patches of all views
            target = teacher_distribution(scores, self.center.center, hp.teacher_temp)
            self.center.observe(scores.mean_logits())
        own = [student.pool.norm(tokens.raw_patches).flatten(0, 2) for tokens in student.grids]
        logits = student.heads["patch"](torch.cat(own)).logits() / self.student_temp
        losses = soft_cross_entropy(target, logits)  # [patches of all views]
        grids = losses.split([len(patches) for patches in own])
        image_views = [len(tokens.raw_patches) for tokens in student.grids]  # G*B, then L*B
        per_grid = torch.stack([x.mean() * n for x, n in zip(grids, image_views, strict=True)])
        return {"patch": per_grid.sum() / sum(image_views)}

    def targets(self, tokens: Tokens, pool: PositivePool) -> Tensor:
        """The aggregates y(i) of each patch's positives, [V*B, N, D]."""
        _, h, w, _ = tokens.raw_patches.shape
        patches = tokens.raw_patches.flatten(1, 2)
        table = neighbour_table(h, w, self.window, self.border, patches.device)
        return pool.pool_positives(patches, top_positives(patches, self.k, table))
