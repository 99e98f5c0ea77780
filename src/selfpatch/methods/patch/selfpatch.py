"""SelfPatch: a patch learns from the aggregate of its most similar neighbours (CVPR 2022, arXiv 2206.07990)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Tokens, Views
from selfpatch.losses.agreement import PatchPairs, make_agreement
from selfpatch.models.pooling import AveragePool, ClassAttentionPool, PositivePool
from selfpatch.ops.neighbours import Border, Window, check_matching, neighbour_table, top_positives


class SelfPatch(Objective):
    """Match, aggregate, agree: the student's patch i is to agree with y(i), the teacher's aggregate of the k neighbours
    most similar to i:

        for each view, for each patch i:
            P(i) = the k patches j of the neighbourhood of i with largest cos(f_t(i), f_t(j))
            y(i) = h_t({f_t(j) : j in P(i)})
            loss += disagreement(y(i), LN f_s(i))

    Teacher and student see the same view, local crops too. h also gives the image token, in place of a CLS token. The
    disagreement is, g being the patch head of each side,

        prototypes   H(softmax((g_t(y(i)) - c) / tau_t), softmax(g_s(LN f_s(i)) / tau_s)), as published with DINO
        cosine       -cos(g_t(y(i)), predict(g_s(LN f_s(i)))), as with MoBY without negatives
        contrast     InfoNCE of the same two against a queue of patch keys, as with MoBY with negatives

    Args:
        dim, num_heads: of the backbone.
        k: positives a patch.
        window: side of the neighbourhood, or `all`.
        border: `wrap` around the image as the released code does, or `clip` to it.
        aggregation: h by class `attention`, or by the `mean` (the poster's ablation).
        agreement: see above.
        hidden_dim, bottleneck: width inside the patch head, and of what it gives.
        num_prototypes, head_norm, norm_last_layer, student_temp, center_momentum: of `prototypes`, as in DINO.
        temp, queue_size, keys_per_view: of `contrast`. The queue holds as many keys as one of MoBY's, and each view of
            an image gives one, so that as many views speak in it.
    """

    needs: ClassVar[Needs] = Needs(local_crops=True, teacher_on_local_crops=True)
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
        agreement: Literal["prototypes", "cosine", "contrast"] = "prototypes",
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_prototypes: int = 4096,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        temp: float = 0.2,
        queue_size: int = 4096,
        keys_per_view: int = 1,
    ) -> None:
        super().__init__()
        check_matching(k, window, border)
        if aggregation not in ("attention", "mean"):
            raise ValueError(f"selfpatch.aggregation is {aggregation!r}; use 'attention' or 'mean'")
        self.k, self.window, self.border = k, window, border
        self._make_pool = (
            partial(ClassAttentionPool, dim, num_heads) if aggregation == "attention" else partial(AveragePool, dim)
        )
        of_agreement = {
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "num_prototypes": num_prototypes,
            "head_norm": head_norm,
            "norm_last_layer": norm_last_layer,
            "student_temp": student_temp,
            "center_momentum": center_momentum,
            "temp": temp,
            "queue_size": queue_size,
            "keys_per_view": keys_per_view,
        }
        defaults = {name: p.default for name, p in inspect.signature(SelfPatch).parameters.items()}
        self.agreement = make_agreement(agreement, dim, of_agreement, defaults)

    def heads(self) -> dict[str, nn.Module]:
        return {"patch": self.agreement.head()}

    def pool(self) -> PositivePool:
        return self._make_pool()

    def check_grid(self, h: int, w: int) -> None:
        neighbours = neighbour_table(h, w, self.window, self.border, torch.device("cpu")).indices.shape[1]
        if self.k > neighbours:
            raise ValueError(
                f"k is {self.k}, but in views of {h} x {w} patches a patch has {neighbours} neighbours; "
                "lower selfpatch.k, or raise crops.global_size or crops.local_size"
            )

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"patch": loss}`, the mean over the patches of a view, then over views."""
        assert isinstance(teacher.pool, PositivePool)
        with torch.no_grad():
            targets = [self.targets(tokens, teacher.pool) for tokens in teacher.tokens_per_resolution]
        patches = [tokens.patches.flatten(1, 2) for tokens in student.tokens_per_resolution]  # LN f(i)
        pairs = PatchPairs.of(patches, targets, views.samples)
        return {"patch": self.agreement(pairs, student.heads["patch"], teacher.heads["patch"], hp)}

    def targets(self, tokens: Tokens, pool: PositivePool) -> Tensor:
        """The aggregates y(i) of each patch's positives, [V*B, N, D]."""
        _, h, w, _ = tokens.raw_patches.shape
        patches = tokens.raw_patches.flatten(1, 2)
        table = neighbour_table(h, w, self.window, self.border, patches.device)
        return pool.pool_positives(patches, top_positives(patches, self.k, table))
