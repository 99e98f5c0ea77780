"""One side of the training: backbone, pool and heads. The teacher is the moving average of a copy of the student."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Tokens
from selfpatch.models.backbones.base import Backbone, Batch, disable_drop_path
from selfpatch.models.backbones.vit import disable_rope_rescale
from selfpatch.models.encoder import image_token, share_final_norm
from selfpatch.models.pooling import PositivePool


class Branch(nn.Module):
    """One side of the training: `crops -> EncoderOutput`.

    Attributes:
        packed: whether crops of all sizes pass the backbone as one sequence of tokens.
    """

    packed = False

    def __init__(self, backbone: Backbone, pool: nn.Module | None, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        share_final_norm(backbone, pool)
        self.backbone, self.pool = backbone, pool
        self.heads = nn.ModuleDict(heads)

    def forward(
        self, crops: Sequence[Tensor], masks: Tensor | None = None, pair_crops: Tensor | None = None
    ) -> EncoderOutput:
        """Encode the views, one batch per resolution, or all of them at once if they are `packed`.

        Args:
            crops: normalised [V, B, C, S, S'] for each resolution, the global crops first.
            masks: [G, B, h, w] bool, True where a patch of a global crop is hidden.
            pair_crops: normalised [V, B, C, S, S'], the clean crops (teacher) or the contained ones (student).
        """
        batches: list[Batch] = [(views.flatten(0, 1), None) for views in crops]
        if masks is not None:
            batches[0] = (batches[0][0], masks.flatten(0, 1))
        if pair_crops is not None:
            batches.append((pair_crops.flatten(0, 1), None))
        at_once = self.packed and len(batches) > 1
        encode = self.backbone.forward_packed if at_once else self.backbone.forward_each
        tokens = [self._normed(each) for each in encode(batches)]
        grids, pair_tokens = tokens[: len(crops)], None if pair_crops is None else tokens[-1]
        images = [  # [V, B, D] each
            image_token(each, self.pool).unflatten(0, views.shape[:2]) for each, views in zip(grids, crops, strict=True)
        ]
        image = torch.cat(images) if images else torch.empty(0, 0, self.backbone.dim)
        return EncoderOutput(image, tuple(grids), dict(self.heads.items()), self.pool, pair_tokens)

    def _normed(self, tokens: Tokens) -> Tokens:
        """Return the tokens with normed patches."""
        # The norm of a positive pool replaces the final norm; a trunk that has one has used it already.
        if isinstance(self.pool, PositivePool) and self.backbone.final_norm is None:
            return tokens._replace(patches=self.pool.norm(tokens.raw_patches))
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
