"""KoLeo: image tokens of a batch spread over the sphere (DINOv2, arXiv 2304.07193, section 4)."""

from typing import ClassVar

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.koleo import KoLeoConfig, KoLeoLoss


class KoLeo(Objective):
    """Apply `KoLeoLoss` to the student's image tokens, before any head, each global crop apart, as DINOv2 does.

    If the method masks crops, they are those of masked crops. The loss has no teacher and no head.
    """

    Config = KoLeoConfig
    needs: ClassVar[Needs] = Needs(teacher_on_global_crops=False)
    loss_weights: ClassVar = {"koleo": 0.1}

    def __init__(self, config: KoLeoConfig) -> None:
        super().__init__()
        self.loss = KoLeoLoss(config)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"koleo": loss}`."""
        return {"koleo": self.loss(student.image[: views.num_global])}
