"""SwAV: swapped predictions of online cluster assignments (Caron et al., arXiv 2006.09882)."""

import math
from typing import ClassVar

from torch import nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.memory_bank import check_bank_size
from selfpatch.losses.swav import SwAVConfig, SwAVHead, SwAVLoss


class SwAV(Objective):
    """`SwAVLoss` between the image tokens of the student's own views.

    SwAV uses no teacher; codes are computed from the student's scores. A teacher with momentum 0 would give other
    codes, because the projector's batch norm covers local views too. With momentum 0 the teacher equals the student.

    With accumulation, codes are computed per micro-batch.
    """

    Config = SwAVConfig
    needs = Needs(local_crops=True)
    loss_weights: ClassVar = {"swapped": 1.0}

    def __init__(self, dim: int, batch_size: int, config: SwAVConfig) -> None:
        super().__init__()
        if config.queue_size is not None:
            check_bank_size("swav.queue_size", config.queue_size, batch_size)
        self.dim, self.config = dim, config
        self.steps_to_fill = (config.queue_size or 0) // batch_size
        self.loss = SwAVLoss(config)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector with its prototypes."""
        return {"prototypes": SwAVHead(self.dim, self.config)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"swapped": loss}`."""
        scores = student.heads["prototypes"](student.image)
        use_queues = hp.epoch >= self.config.queue_from_epoch and hp.step >= self.steps_to_fill
        return {"swapped": self.loss(scores, views.num_global, use_queues=use_queues)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return log K of the prototypes."""
        return {"swapped": math.log(self.config.num_prototypes)}
