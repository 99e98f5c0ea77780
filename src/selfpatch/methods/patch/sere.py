"""SERE: self-relations of features as what the student learns (Li, Gao, Cheng; TPAMI 2023, arXiv 2206.05184)."""

import math
from typing import ClassVar

from torch import Tensor, nn

from selfpatch.config.schema import PointGrid, height_and_width
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.sere import RelationLoss, SEREConfig


class SERE(Objective):
    """`RelationLoss` between every crop of the student and each other global crop of the teacher.

    Tokens are those before the trunk's final norm. If the method masks crops, the student's are of masked crops.
    """

    Config = SEREConfig
    needs = Needs(local_crops=True)
    loss_weights: ClassVar = {"spatial": 0.2, "channel": 0.5}

    def __init__(self, dim: int, num_heads: int, num_local: int, config: SEREConfig) -> None:
        super().__init__()
        self.loss = RelationLoss(dim, num_heads, num_local > 0, config)
        # A run neither weighs nor logs a loss that is not learned.
        self.loss_weights = {kind: SERE.loss_weights[kind] for kind in self.loss.kinds}  # type: ignore[misc]

    def heads(self) -> dict[str, nn.Module]:
        """Return one head per relation and kind of crop."""
        return self.loss.heads()

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"spatial": loss, "channel": loss}`, or the one that is learned."""
        (targets,) = tokens_by_view(teacher, views, 1)
        tokens, local = (*tokens_by_view(student, views, 2 if self.loss.has_local else 1), None)[:2]
        return self.loss(tokens, local, targets, views.boxes, (student.heads, teacher.heads))

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the log of the number of points (mean over the pairs of crops) or of channels that are related."""
        c, pairs = self.loss.config, views.num_global - 1
        num_local = 0 if views.local_crops is None else len(views.local_crops)
        points = pairs * _log_points(c.overlap_size) + num_local * _log_points(c.local_overlap_size)
        values = {"spatial": points / (pairs + num_local), "channel": math.log(self.loss.dim)}
        return {kind: values[kind] for kind in self.loss.kinds}


def _log_points(grid: PointGrid) -> float:
    return math.log(math.prod(height_and_width(grid)))


def tokens_by_view(side: EncoderOutput, views: Views, num_resolutions: int) -> list[Tensor]:
    """Return the raw patches [V, B, h, w, D] of the first resolutions."""
    resolutions = side.tokens_per_resolution[:num_resolutions]
    return [tokens.raw_patches.unflatten(0, (-1, views.batch_size)) for tokens in resolutions]
