"""The anchor: a frozen third encoder beside student and teacher, which objectives compare the student with."""

import torch
from torch import nn

from selfpatch.core.distributed import local_shard
from selfpatch.core.types import EncoderOutput, Views
from selfpatch.models.branch import Branch
from selfpatch.ops.images import normalise


class Anchor(nn.Module):
    """Frozen encoder of the global crops. Its normalisation, patch size and width may differ from the student's.

    It is always in evaluation mode, takes no gradient, and does not follow the student. The teacher may
    replace it every `refresh_every` steps, as in DINOv3's Gram anchoring.

    Args:
        branch: backbone and pool, without heads.
        refresh_every: number of steps after which the teacher replaces it; 0 for never.
        max_refreshes: largest number of times that it is replaced.
        trained: False for initial weights that were never trained, which are no anchor until they are replaced.
    """

    def __init__(self, branch: Branch, *, refresh_every: int = 0, max_refreshes: int = 0, trained: bool = True) -> None:
        super().__init__()
        assert trained or refresh_every, "it would never be an anchor"
        self.branch = branch.requires_grad_(False)
        self.refresh_every, self.max_refreshes = refresh_every, max_refreshes
        self.first_step = 0 if trained else refresh_every
        self.train(False)

    def train(self, mode: bool = True) -> "Anchor":
        """Stay in evaluation mode, whatever the mode of the module around it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, views: Views) -> EncoderOutput:
        """Encode the crops made for the anchor, or the global crops where it sees the same."""
        crops = views.global_crops if views.anchor_crops is None else views.anchor_crops
        return self.branch([normalise(crops, self.branch.backbone.mean, self.branch.backbone.std)])

    @torch.no_grad()
    def refresh_if_due(self, teacher: Branch, num_steps: int) -> None:
        """Take over the weights of the teacher if it is due after `num_steps` steps; both have one architecture."""
        n = self.refresh_every
        if n and num_steps % n == 0 and num_steps // n <= self.max_refreshes:
            newer = teacher.state_dict()
            for name, tensor in self.branch.state_dict().items():
                local_shard(tensor).copy_(local_shard(newer[name]))
