"""SERE's losses: self-relations of patches and of channels, aligned between views (TPAMI 2023, arXiv 2206.05184)."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from selfpatch.config.schema import PointGrid, settings
from selfpatch.losses.owned_heads import LossWithHeads
from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.ops import relation


@settings
class SEREConfig:
    """Settings of SERE."""

    relations: Literal["spatial", "channel", "both"] = "both"
    """Relations to learn: between patches (`spatial`), between channels (`channel`), or `both`."""
    spatial_temp: PositiveFloat = 0.5
    """Softmax temperature of the teacher's spatial relations; the student's is 1."""
    channel_temp: PositiveFloat = 0.1
    """Softmax temperature of the teacher's channel relations; the student's is 1."""
    overlap_size: PointGrid = 13
    """Side of the grid of points on which two global crops are compared, in points, or rows and columns: [13, 26] suits
    crops that are twice as wide as high."""
    local_overlap_size: PointGrid = 6
    """Side of the grid of points on which a local and a global crop are compared, in points, or rows and columns."""
    channel_scale: PositiveFloat = 14.0
    """Divisor of global tokens before channels are related: the grid side at 224 pixels (released constant)."""
    local_channel_scale: PositiveFloat = 6.0
    """Divisor of local tokens before channels are related: the grid side at 96 pixels (released constant)."""


class RelationHead(nn.Module):
    """Projection and prediction of patch tokens [..., D] before they are related; the width stays the same.

    Only the student has the prediction on top of the projection; in the released code both sides have both.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(BatchNorm(dim), nn.ReLU(inplace=True))
        self.predictor = nn.Sequential(nn.Linear(dim, dim, bias=False), BatchNorm(dim), nn.ReLU(inplace=True))

    def forward(self, tokens: Tensor, *, teacher: bool = False) -> Tensor:
        """Return what the relations of tokens [..., D] are computed from, [..., D] float32."""
        projected = self.projection(tokens)
        return projected.float() if teacher else self.predictor(projected).float()


class SERESpatialLoss(nn.Module):
    """Cross-entropy between the spatial relations of two views on the points that they share (section 3.2).

        for each teacher's global crop t, for each other crop s of the same image, global or local:
            R_t, R_s = z z^T / sqrt(d) within each attention head, both axes sampled on a grid over the overlap
            loss += H(softmax(R_t / spatial_temp), softmax(R_s))

    H is the mean over images, heads and rows, the loss over pairs. Crops without overlap count, with relations 0.

    Args:
        num_heads: number of attention heads, which divides the width of the tokens.
        config: temperature and grids.
    """

    def __init__(self, num_heads: int, config: SEREConfig = SEREConfig()) -> None:
        super().__init__()
        self.num_heads, self.config = num_heads, config

    def forward(self, student: Tensor, local: Tensor | None, teacher: Tensor, boxes: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: [G, B, h, w, D] the student's predictions of the global crops.
            local: [L, B, h', w', D] of the local crops, if any.
            teacher: [G, B, h, w, D] the teacher's projections of the global crops; they take no gradient.
            boxes: [G + L, B, 5] (left, top, width, height, flipped) of each crop in pixels of the image.
        """
        G, L = len(student), 0 if local is None else len(local)
        compare = partial(relation.spatial_relation_loss, num_heads=self.num_heads, temp=self.config.spatial_temp)
        total = student.new_zeros(())
        for t in range(G):
            for s in range(G):
                if s != t:
                    grids = relation.overlap_grids(boxes[s], boxes[t], self.config.overlap_size)
                    total = total + compare(student[s], teacher[t], *grids)
            if local is not None:
                grids = relation.overlap_grids(boxes[G:], boxes[t], self.config.local_overlap_size)  # [L, B, s, s, 2]
                total = total + L * compare(local, teacher[t], *grids)
        return total / (G * (G - 1 + L))


class SEREChannelLoss(nn.Module):
    """Cross-entropy between the channel relations of two views (section 3.3).

        for each teacher's global crop t, for each other crop s of the same image, global or local:
            R_t, R_s = (z / scale)^T (z / scale) over the patches of the crop
            loss += H(softmax(R_t / channel_temp), softmax(R_s))

    H is the mean over images and rows, the loss the mean over pairs. It is linear in the target: a view is compared
    once, with the mean of the targets of all its pairs.

    Args:
        config: temperature and scales.
    """

    def __init__(self, config: SEREConfig = SEREConfig()) -> None:
        super().__init__()
        self.config = config

    def forward(self, student: Tensor, local: Tensor | None, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar; arguments as for `SERESpatialLoss`."""
        c = self.config
        G, L = len(student), 0 if local is None else len(local)
        with torch.no_grad():
            relations = relation.channel_relation(teacher.flatten(2, 3), c.channel_scale)
            targets = relation.relation_target(relations, c.channel_temp)  # [G, B, D, D]
            mean_target = targets.mean(0)
        total = student.new_zeros(())
        for s, view in enumerate(student.flatten(2, 3)):
            others = torch.cat([targets[:s], targets[s + 1 :]]).mean(0)
            total = total + (G - 1) * relation.channel_relation_loss(view, others, c.channel_scale)
        for view in () if local is None else local.flatten(2, 3):
            total = total + G * relation.channel_relation_loss(view, mean_target, c.local_channel_scale)
        return total / (G * (G - 1 + L))


class RelationLoss(nn.Module):
    """SERE's losses as `SERELoss`, with heads that the caller owns.

    Batch normalisation is over all global crops together, and over all local ones, which have separate heads.

    Raises:
        ValueError: the width cannot be split into the heads.
    """

    def __init__(self, dim: int, num_heads: int, has_local: bool, config: SEREConfig) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"sere relates patches within each head, but width {dim} cannot be split into {num_heads} heads; "
                "use a number of heads that divides it"
            )
        self.dim, self.has_local, self.config = dim, has_local, config
        self.kinds = ("spatial", "channel") if config.relations == "both" else (config.relations,)
        self.spatial, self.channel = SERESpatialLoss(num_heads, config), SEREChannelLoss(config)

    def heads(self) -> dict[str, nn.Module]:
        """Return fresh heads by name; student and teacher have one of each."""
        crops = ("", "_local") if self.has_local else ("",)
        return {f"{kind}_relation{crop}": RelationHead(self.dim) for kind in self.kinds for crop in crops}

    def forward(
        self,
        student: Tensor,
        local: Tensor | None,
        teacher: Tensor,
        boxes: Tensor,
        heads: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
    ) -> dict[str, Tensor]:
        """Return the losses as `SERELoss` does, with the heads of student and teacher by name."""
        if len(teacher) < 2:
            raise ValueError("sere compares global crops with one another, but there is only one; use at least 2")
        losses = {}
        for kind in self.kinds:
            predictions = heads[0][f"{kind}_relation"](student)
            local_predictions = None if local is None else heads[0][f"{kind}_relation_local"](local)
            with torch.no_grad():
                target = heads[1][f"{kind}_relation"](teacher, teacher=True)
            sides = predictions, local_predictions, target
            losses[kind] = self.spatial(*sides, boxes) if kind == "spatial" else self.channel(*sides)
        return losses


class SERELoss(LossWithHeads):
    """SERE's losses for any training loop; see `SERESpatialLoss` and `SEREChannelLoss` for the equations.

    It owns the heads of student and teacher. Train `criterion.parameters()` together with the student.

    Example:
        >>> criterion = SERELoss(dim=384, num_heads=6)
        >>> losses = criterion(student_tokens, teacher_tokens, boxes)
        >>> loss = 0.2 * losses["spatial"] + 0.5 * losses["channel"]    # the paper's weights
        >>> loss.backward(), optimizer.step(), criterion.update(momentum=0.996)

    Args:
        dim: width of the tokens.
        num_heads: number of attention heads, within which patches are related; usually the backbone's.
        has_local: whether there are local crops, which get separate heads.
        config: which relations, temperatures, grids and scales.
    """

    def __init__(self, dim: int, num_heads: int, *, has_local: bool = False, config: SEREConfig = SEREConfig()) -> None:
        loss = RelationLoss(dim, num_heads, has_local, config)
        super().__init__(loss.heads())
        self.loss = loss

    def forward(
        self, student_tokens: Tensor, teacher_tokens: Tensor, boxes: Tensor, *, local_tokens: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `{"spatial": loss, "channel": loss}`, or the one that is learned.

        Args:
            student_tokens: [G, B, h, w, D] the student's patches of the G >= 2 global crops, before any norm.
            teacher_tokens: [G, B, h, w, D] the teacher's.
            boxes: [G + L, B, 5] (left, top, width, height, flipped) of each crop in pixels of the image.
            local_tokens: [L, B, h', w', D] the student's patches of the local crops.

        Raises:
            ValueError: there is one global crop, or local crops do not come as announced by `has_local`.
        """
        if (local_tokens is not None) != self.loss.has_local:
            given = "no local crops are" if local_tokens is None else "local crops are"
            raise ValueError(
                f"{given} given, but has_local is {self.loss.has_local}; make the loss for what it is given"
            )
        heads = dict(self.student.items()), dict(self.teacher.items())
        return self.loss(student_tokens, local_tokens, teacher_tokens, boxes, heads)
