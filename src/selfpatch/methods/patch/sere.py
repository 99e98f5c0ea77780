"""SERE: self-relations of features as what the student learns (Li, Gao, Cheng; TPAMI 2023, arXiv 2206.05184)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.ops.relation import (
    channel_relation,
    channel_relation_loss,
    overlap_grids,
    relation_target,
    spatial_relation_loss,
)

Relations = Literal["spatial", "channel", "both"]


class RelationHead(nn.Module):
    """What patch tokens [..., D] go through before they are related; the width stays the same.

    The teacher's relations come from the projection alone, the student's from the prediction on top of it. Released
    code has both on both sides.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(BatchNorm(dim), nn.ReLU(inplace=True))
        self.predictor = nn.Sequential(nn.Linear(dim, dim, bias=False), BatchNorm(dim), nn.ReLU(inplace=True))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.predictor(self.projection(tokens))


class SERE(Objective):
    """The student's relations between the patches, and between the channels, of a view are to be the teacher's of
    another view:

        for each teacher's global crop t, for each other crop s of the same image, global or local:
            R_t, R_s = spatial relations, sampled on a grid over what t and s both show
            spatial += H(softmax(R_t / spatial_temp), softmax(R_s))
            R_t, R_s = channel relations
            channel += H(softmax(R_t / channel_temp), softmax(R_s))

    H is the mean over images, heads and rows, each loss the mean over its pairs. Tokens are those before the trunk's
    final norm; the student's are of masked crops where the method masks. Crops without overlap count as well: all of
    their relations are 0 there. Batch normalisation is over all global crops together, and over all local ones.

    Args:
        dim, num_heads: of the backbone.
        num_local: local crops an image.
        relations: learn both kinds, or one alone (the paper's ablation).
        spatial_temp, channel_temp: of the teacher; the student's is 1.
        overlap_size, local_overlap_size: points a side of the grid that two global crops, or a local and a global one,
            are compared on.
        channel_scale, local_channel_scale: what the tokens are divided by before channels are related; the sides of the
            patch grids of 224 and 96 pixels, constants of the released code.
    """

    needs: ClassVar[Needs] = Needs(local_crops=True)
    loss_weights: ClassVar[Mapping[str, float]] = {"spatial": 0.2, "channel": 0.5}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_local: int,
        *,
        relations: Relations = "both",
        spatial_temp: float = 0.5,
        channel_temp: float = 0.1,
        overlap_size: int = 13,
        local_overlap_size: int = 6,
        channel_scale: float = 14.0,
        local_channel_scale: float = 6.0,
    ) -> None:
        super().__init__()
        if relations not in get_args(Relations):
            raise ValueError(f"sere.relations is {relations!r}; use one of: {', '.join(get_args(Relations))}")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"sere relates patches within each head, but width {dim} cannot be split into {num_heads} heads; "
                "use a number of heads that divides it"
            )
        for name, size in (("overlap_size", overlap_size), ("local_overlap_size", local_overlap_size)):
            if size < 2:
                raise ValueError(f"sere.{name} is {size}; at least 2 points a side are needed to relate any")
        positive = {
            "spatial_temp": spatial_temp,
            "channel_temp": channel_temp,
            "channel_scale": channel_scale,
            "local_channel_scale": local_channel_scale,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"sere.{name} is {value}; it must be above 0")
        self.num_heads, self.num_local = num_heads, num_local
        self.kinds = ("spatial", "channel") if relations == "both" else (relations,)
        # One kind alone has one loss, and a run neither weighs nor logs the other.
        self.loss_weights = {kind: SERE.loss_weights[kind] for kind in self.kinds}  # type: ignore[misc]
        self.spatial_temp, self.channel_temp = spatial_temp, channel_temp
        self.overlap_size, self.local_overlap_size = overlap_size, local_overlap_size
        self.channel_scale, self.local_channel_scale = channel_scale, local_channel_scale
        self._make_head = partial(RelationHead, dim)

    def heads(self) -> dict[str, nn.Module]:
        places = ("", "_local") if self.num_local else ("",)
        return {f"{kind}_relation{place}": self._make_head() for kind in self.kinds for place in places}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"spatial": loss, "channel": loss}`, or the one of them that is learned.

        Raises:
            ValueError: there is only one global crop.
        """
        if views.num_global < 2:
            raise ValueError("sere compares global crops with one another, but there is only one; use at least 2")
        losses = {}
        for kind in self.kinds:
            own = self.student_tokens(student, views, kind)
            with torch.no_grad():
                target = self.teacher_tokens(teacher, views, kind)
            losses[kind] = (
                self.spatial_loss(*own, target, views.boxes) if kind == "spatial" else self.channel_loss(*own, target)
            )
        return losses

    def student_tokens(self, student: EncoderOutput, views: Views, kind: str) -> tuple[Tensor, Tensor | None]:
        """What the student's relations of a kind are made of: [G, B, h, w, D] and, of local crops, [L, B, h, w, D]."""
        of_views = (-1, views.batch_size)
        own = (
            student.heads[f"{kind}_relation"](student.tokens_per_resolution[0].raw_patches)
            .float()
            .unflatten(0, of_views)
        )
        if not self.num_local:
            return own, None
        local = student.heads[f"{kind}_relation_local"](student.tokens_per_resolution[1].raw_patches)
        return own, local.float().unflatten(0, of_views)

    def teacher_tokens(self, teacher: EncoderOutput, views: Views, kind: str) -> Tensor:
        """What the teacher's relations of a kind are made of: [G, B, h, w, D]."""
        head = teacher.heads[f"{kind}_relation"]
        assert isinstance(head, RelationHead)
        return (
            head.projection(teacher.tokens_per_resolution[0].raw_patches).float().unflatten(0, (-1, views.batch_size))
        )

    def spatial_loss(self, own: Tensor, local: Tensor | None, target: Tensor, boxes: Tensor) -> Tensor:
        """Tokens as above, and the boxes [V, B, 5] of all views."""
        G, L = len(own), 0 if local is None else len(local)
        compare = partial(spatial_relation_loss, num_heads=self.num_heads, temp=self.spatial_temp)
        total = own.new_zeros(())
        for t in range(G):
            for s in range(G):
                if s != t:
                    grids = overlap_grids(boxes[s], boxes[t], self.overlap_size)
                    total = total + compare(own[s], target[t], *grids)
            if local is not None:
                grids = overlap_grids(boxes[G:], boxes[t], self.local_overlap_size)  # [L, B, s, s, 2]
                total = total + L * compare(local, target[t], *grids)
        return total / (G * (G - 1 + L))

    def channel_loss(self, own: Tensor, local: Tensor | None, target: Tensor) -> Tensor:
        """Tokens as above. The cross-entropy is linear in the target: a view is compared once, with the mean of the
        targets of all its pairs."""
        G, L = len(own), 0 if local is None else len(local)
        with torch.no_grad():
            relation = channel_relation(target.flatten(2, 3), self.channel_scale)
            target = relation_target(relation, self.channel_temp)  # [G, B, D, D]
            everything = target.mean(0)
        total = own.new_zeros(())
        for s in range(G):
            others = torch.cat([target[:s], target[s + 1 :]]).mean(0)
            total = total + (G - 1) * channel_relation_loss(own[s].flatten(1, 2), others, self.channel_scale)
        for view in () if local is None else local:
            total = total + G * channel_relation_loss(view.flatten(1, 2), everything, self.local_channel_scale)
        return total / (G * (G - 1 + L))
