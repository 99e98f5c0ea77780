"""NeCo: patches order the same references alike in two crops (Pariza, Salehi et al., arXiv 2408.11054)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.core.seeds import step_generator
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.neco import NeCoConfig, NeCoLoss
from selfpatch.models.heads import MLPHeadConfig, mlp_head
from selfpatch.ops.contrast import l2_normalize


@settings
class NeCoObjectiveConfig(NeCoConfig, MLPHeadConfig):
    """Settings of NeCo: its head and its loss."""


class NeCo(Objective):
    """Apply `NeCoLoss` to the patches of every crop after the final norm and a head.

    If the method masks crops, the student's patches are those of masked crops. Patches and references are drawn from
    the run's seed and the number of the step, alike on every process.
    """

    Config = NeCoObjectiveConfig
    needs = Needs(local_crops=True)
    loss_weights: ClassVar = {"order": 1.0}

    def __init__(self, dim: int, config: NeCoObjectiveConfig, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.config, self.seed = dim, config, seed
        self.loss = NeCoLoss(config.bottleneck_dim, config=config)

    def heads(self) -> dict[str, nn.Module]:
        """Return the head D - hidden - hidden - bottleneck."""
        return {"neco": mlp_head(self.dim, self.config)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"order": loss}`."""
        crops = [self._embed(student, i, views) for i in range(len(student.tokens_per_resolution))]
        with torch.no_grad():
            targets = self._embed(teacher, 0, views)
        local = crops[1] if len(crops) > 1 else None
        generator = step_generator(self.seed, hp.step, views.device)
        return {"order": self.loss(crops[0], local, targets, views.boxes, generator)}

    def _embed(self, side: EncoderOutput, resolution: int, views: Views) -> Tensor:
        """Return unit embeddings [V, B, h, w, E] of the crops of a resolution."""
        patches = side.tokens_per_resolution[resolution].patches.unflatten(0, (-1, views.batch_size))
        return l2_normalize(side.heads["neco"](patches))
