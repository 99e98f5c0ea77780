"""SelfPatch: a patch learns from the aggregate of its most similar neighbours (CVPR 2022, arXiv 2206.07990)."""

import math
from typing import ClassVar

from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Tokens, Views
from selfpatch.losses.selfpatch import Agreement, SelfPatchConfig, make_pool, patch_targets
from selfpatch.models.pooling import PositivePool
from selfpatch.ops.neighbours import check_neighbours


class SelfPatch(Objective):
    """Apply `SelfPatchLoss` to every view, including local crops.

    Its pool also gives the image token, in place of a CLS token.
    """

    Config = SelfPatchConfig
    needs = Needs(local_crops=True, teacher_on_local_crops=True)
    loss_weights: ClassVar = {"patch": 0.1}

    def __init__(self, dim: int, num_heads: int, config: SelfPatchConfig) -> None:
        super().__init__()
        self.dim, self.num_heads, self.config = dim, num_heads, config
        self.agreement = Agreement(dim, config)

    def heads(self) -> dict[str, nn.Module]:
        """Return the patch head."""
        return {"patch": self.agreement.head()}

    def pool(self) -> PositivePool:
        """Return the pool that aggregates positives and makes the image token."""
        return make_pool(self.dim, self.num_heads, self.config)

    def check_grid(self, crops: str, h: int, w: int) -> None:
        """Raise ValueError if a patch in crops of h x w patches has fewer than k neighbours."""
        check_neighbours(h, w, self.config)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"patch": loss}`."""
        assert isinstance(teacher.pool, PositivePool)
        patches = [tokens.patches.flatten(1, 2) for tokens in student.tokens_per_resolution]  # after the pool's norm
        targets = [self.targets(tokens, teacher.pool) for tokens in teacher.tokens_per_resolution]
        heads = student.heads["patch"], teacher.heads["patch"]
        scheduled = {"teacher_temp": hp.teacher_temp, "step": hp.step}
        return {"patch": self.agreement(patches, targets, heads, samples=views.samples, **scheduled)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return log K of the prototypes, or of the number of keys (contrast); a cosine has no such value."""
        choices = {"prototypes": self.config.num_prototypes, "contrast": 1 + self.config.queue_size}
        count = choices.get(self.config.agreement)
        return {} if count is None else {"patch": math.log(count)}

    def targets(self, tokens: Tokens, pool: PositivePool) -> Tensor:
        """Return the aggregates of each patch's positives, [V*B, N, D]."""
        _, h, w, _ = tokens.raw_patches.shape
        return patch_targets(tokens.raw_patches.flatten(1, 2), (h, w), pool, self.config)
