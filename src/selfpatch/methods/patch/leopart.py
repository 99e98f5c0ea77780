"""Leopart: clusters of foreground patches, alike in all crops (Ziegler, Asano; CVPR 2022, arXiv 2204.13101)."""

import math
from typing import ClassVar

import torch
from torch import nn

from selfpatch.config.schema import Fraction, settings
from selfpatch.core.seeds import step_generator
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.leopart import LeopartConfig, LeopartHead, LeopartLoss
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.foreground import attended_patches


@settings
class LeopartObjectiveConfig(LeopartConfig):
    """Settings of Leopart: its head, its loss and its foreground."""

    foreground: bool = True
    """Learn from the patches to which the teacher's CLS token attends most (ViT with a CLS token only), as published;
    otherwise from all patches."""
    foreground_mass: Fraction = 0.6
    """Share of that attention that the foreground holds."""


class Leopart(Objective):
    """Apply `LeopartLoss` to the patches of every crop after the final norm.

    If the method masks crops, the student's patches are those of masked crops. The patches that enter the queues are
    drawn from the run's seed and the number of the step, alike on every process.
    """

    Config = LeopartObjectiveConfig
    loss_weights: ClassVar = {"clusters": 1.0}

    def __init__(self, dim: int, config: LeopartObjectiveConfig, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.config, self.seed = dim, config, seed
        self.loss = LeopartLoss(config)
        self.needs = Needs(local_crops=True, class_attention=config.foreground)  # type: ignore[misc]

    def heads(self) -> dict[str, nn.Module]:
        """Return the head and its prototypes."""
        return {"leopart": LeopartHead(self.dim, self.config)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"clusters": loss}`."""
        crops = [self._scores(student, i, views) for i in range(len(student.tokens_per_resolution))]
        with torch.no_grad():
            targets, foreground = self._scores(teacher, 0, views), None
            if (attention := teacher.tokens_per_resolution[0].class_attention) is not None and self.config.foreground:
                mask = attended_patches(attention, self.config.foreground_mass)
                foreground = mask.unflatten(0, (-1, views.batch_size))
        local = crops[1] if len(crops) > 1 else None
        generator = step_generator(self.seed, hp.step, views.device)
        return {"clusters": self.loss(crops[0], local, targets, views.boxes, foreground, generator)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return log K of the prototypes."""
        return {"clusters": math.log(self.config.num_prototypes)}

    def _scores(self, side: EncoderOutput, resolution: int, views: Views) -> Scores:
        """Return the scores [V, B, h, w, K] of the crops of a resolution."""
        scores: Scores = side.heads["leopart"](side.tokens_per_resolution[resolution].patches)
        return Scores(scores.bottleneck.unflatten(0, (-1, views.batch_size)), scores.prototypes)
