"""Distillation: the student learns the features of a frozen encoder of any patch size and width."""

from typing import Annotated, ClassVar, Literal

from annotated_types import MinLen
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from selfpatch.config.schema import settings
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Needs, Objective, Views
from selfpatch.losses.channel_statistics import ChannelStatistics
from selfpatch.losses.distill import (
    ImageSimilarityLoss,
    PatchDistillationConfig,
    PatchDistillationLoss,
    PatchSimilarityLoss,
)

DistillLoss = Literal["patch_features", "image_features", "patch_similarities", "image_similarities"]


@settings
class DistillConfig(PatchDistillationConfig):
    """Settings of distillation; the weights of distances are those of matched features."""

    losses: Annotated[tuple[DistillLoss, ...], MinLen(1)] = ("patch_similarities", "image_similarities")
    """Losses: similarities of the patches within an image and of the image to a queue of others (lightly-train), or
    matched features of patches (Theia, arXiv 2407.20179) and of the image. Similarities are learnt in fewer steps."""
    standardise: bool = True
    """Give each channel of the frozen encoder's tokens mean 0 and deviation 1 before features are matched, as Theia."""
    temp: PositiveFloat = 0.07
    """Softmax temperature of similarities."""
    queue_size: PositiveInt = 8192
    """Number of images in the queue, best below the number of images of the data set (image_similarities only)."""


class Distill(Objective):
    """Learn the features, or the similarities, that a frozen encoder gives the global crops.

    Each loss projects the student's tokens to the encoder's width by a layer of its own. Maps are resized to the
    encoder's grid, bilinear. Departure from lightly-train: images are not mixed with one another.

    Args:
        dim: width of the student's tokens.
        anchor_dim: width of the encoder's.
        config: settings.
    """

    Config = DistillConfig
    needs: ClassVar[Needs] = Needs(teacher_on_global_crops=False, anchor=True)

    def __init__(self, dim: int, anchor_dim: int, config: DistillConfig) -> None:
        super().__init__()
        self.config = config
        self.loss_weights = dict.fromkeys(config.losses, 1.0)  # type: ignore[misc]
        made = {
            "patch_features": lambda: PatchDistillationLoss(dim, anchor_dim, config),
            "image_features": lambda: PatchDistillationLoss(dim, anchor_dim, config),
            "patch_similarities": lambda: PatchSimilarityLoss(dim, anchor_dim, config.temp),
            "image_similarities": lambda: ImageSimilarityLoss(dim, anchor_dim, config.queue_size, config.temp),
        }
        self.losses = nn.ModuleDict({name: made[name]() for name in config.losses})
        matched = [name for name in config.losses if name.endswith("features") and config.standardise]
        self.statistics = nn.ModuleDict({name: ChannelStatistics(anchor_dim) for name in matched})

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return each loss by name, the mean over global crops and images; `teacher` is the anchor."""
        losses: Losses = {}
        for name, criterion in self.losses.items():
            if name.startswith("patch"):
                x, target = (side.tokens_per_resolution[0].patches for side in (student, teacher))  # [G*B, h, w, D]
            else:  # [B*G, D] by image, so that several processes fill the queue as one does
                sides = (side.image[: views.num_global].transpose(0, 1) for side in (student, teacher))
                x, target = (image.flatten(0, 1) for image in sides)
            if name == "image_features":
                x, target = x[:, None, None], target[:, None, None]  # maps of one token
            if name in self.statistics:
                target = self.statistics[name](target)
            losses[name] = criterion(x, target)
        return losses
