"""One side of the training: backbone, pool and heads. The teacher is the moving average of a copy of the student."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Tokens
from selfpatch.models.backbones.base import Backbone, disable_drop_path
from selfpatch.models.backbones.vit import disable_rope_rescale
from selfpatch.models.encoder import image_token, share_final_norm
from selfpatch.models.pooling import PositivePool


class Branch(nn.Module):
    """One side of the training: `crops -> EncoderOutput`."""

    def __init__(self, backbone: Backbone, pool: nn.Module | None, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        share_final_norm(backbone, pool)
        self.backbone, self.pool = backbone, pool
        self.heads = nn.ModuleDict(heads)

    def forward(
        self, crops: Sequence[Tensor], masks: Tensor | None = None, pair_crops: Tensor | None = None
    ) -> EncoderOutput:
        """Encode the views, one batch per resolution.

        Args:
            crops: normalised [V, B, C, S, S'] for each resolution, the global crops first.
            masks: [G, B, h, w] bool, True where a patch of a global crop is hidden.
            pair_crops: normalised [V, B, C, S, S'], the clean crops (teacher) or the contained ones (student).
        """
        grids, images = [], []
        for resolution, views in enumerate(crops):
            mask = masks.flatten(0, 1) if masks is not None and resolution == 0 else None
            tokens = self._tokens(views, mask)
            grids.append(tokens)
            images.append(image_token(tokens, self.pool).unflatten(0, views.shape[:2]))  # [V, B, D]
        image = torch.cat(images) if images else torch.empty(0, 0, self.backbone.dim)
        pair_tokens = None if pair_crops is None else self._tokens(pair_crops)
        return EncoderOutput(image, tuple(grids), dict(self.heads.items()), self.pool, pair_tokens)

    def _tokens(self, views: Tensor, mask: Tensor | None = None) -> Tokens:
        """Return the tokens [V*B, ...] of views [V, B, C, S, S']."""
        tokens = self.backbone(views.flatten(0, 1), mask)
        # The norm of a positive pool replaces the final norm; a trunk that has one has used it already.
        if isinstance(self.pool, PositivePool) and self.backbone.final_norm is None:
            tokens = tokens._replace(patches=self.pool.norm(tokens.raw_patches))
        return tokens

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Run a ViT's blocks through torch.compile; names, weights and copies stay as they are."""
        for part in self.backbone.repeated_blocks():
            part.compile(backend=backend)

    def make_teacher(self) -> "Branch":
        """Return a copy without gradients, drop path or drawn rotations.

        It is in training mode because its heads may hold batch norms. Frozen parameters of the backbone, which never
        differ, are shared.
        """
        shared = {id(parameter): parameter for parameter in self.backbone.parameters() if not parameter.requires_grad}
        teacher = copy.deepcopy(self, dict(shared)).requires_grad_(False)
        disable_drop_path(teacher)
        disable_rope_rescale(teacher)
        return teacher
