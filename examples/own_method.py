"""A method of your own, trained together with SelfPatch: contrast of two crops within the batch."""

from typing import Any

from torch import nn

import selfpatch
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Objective, Views
from selfpatch.losses.info_nce import InfoNCEConfig, InfoNCELoss
from selfpatch.methods.registry import METHODS


class Contrast(Objective):
    """The student's first crop finds the teacher's second crop of the same image."""

    Config, loss_weights = InfoNCEConfig, {"contrast": 1.0}

    def __init__(self, dim: int, config: InfoNCEConfig) -> None:
        super().__init__()
        self.dim, self.loss = dim, InfoNCELoss(config.temp)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector, of which each side has a copy."""
        return {"projector": nn.Linear(self.dim, 128)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return the losses by name."""
        keys = teacher.heads["projector"](teacher.image[1])  # [B, 128]; they take no gradient
        return {"contrast": self.loss(student.heads["projector"](student.image[0]), keys)}


METHODS["contrast"] = Contrast

if __name__ == "__main__":
    small: dict[str, Any] = {"model": "vit_tiny", "crops": {"global_size": 64, "num_local": 0}, "epochs": 1}
    selfpatch.pretrain(method="contrast", objective="selfpatch", contrast={"temp": 0.1}, **small)
