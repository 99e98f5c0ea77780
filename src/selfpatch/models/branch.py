"""A branch: backbone, pool and heads together. The student is one; the teacher is the moving average of a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfpatch.core.reference import fast_path_of
from selfpatch.core.types import EncoderOutput
from selfpatch.models.backbones.base import Backbone, disable_drop_path
from selfpatch.models.encoder import image_token
from selfpatch.models.pooling import PositivePool


class Branch(nn.Module):
    """One side of the training: `crops -> EncoderOutput`."""

    def __init__(self, backbone: Backbone, pool: nn.Module | None, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.heads = nn.ModuleDict(heads)

    def forward(self, crops: Sequence[Tensor], masks: Tensor | None = None) -> EncoderOutput:
        """Encodes groups of views of one resolution each.

        Args:
            crops: normalised [V, B, C, S, S] a resolution, the global crops' first.
            masks: [G, B, h, w] bool, what is hidden of the global crops.
        """
        grids, images = [], []
        for group, views in enumerate(crops):
            mask = masks.flatten(0, 1) if masks is not None and group == 0 else None
            tokens = self.backbone(views.flatten(0, 1), mask)
            if isinstance(self.pool, PositivePool):  # it stands in for the final norm too
                tokens = tokens._replace(patches=self.pool.norm(tokens.raw_patches))
            grids.append(tokens)
            images.append(image_token(tokens, self.pool).unflatten(0, views.shape[:2]))  # [V, B, D]
        return EncoderOutput(torch.cat(images), tuple(grids), dict(self.heads.items()), self.pool)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """The backbone's blocks run through torch.compile from now on; names, weights and copies stay as they are.

        Raises:
            ValueError: the backbone is no ViT.
        """
        for part in self.backbone.repeated_parts():
            part.compile(backend=backend)

    def make_teacher(self) -> Branch:
        """A copy without gradients or drop path; it stays in training mode, as its heads may hold batch norms."""
        teacher = copy.deepcopy(self).requires_grad_(False)
        disable_drop_path(teacher)
        return teacher

    @torch.no_grad()
    def ema_update_reference(self, student: Branch, momentum: float, ok: Tensor | None = None) -> None:
        """`ema_update`, one parameter after the other."""
        for own, theirs in zip(self.parameters(), student.parameters(), strict=True):
            before = None if ok is None else own.clone()
            own.mul_(momentum).add_(theirs, alpha=1 - momentum)
            if ok is not None and before is not None:
                torch.where(ok, own, before, out=own)

    @fast_path_of(ema_update_reference)
    @torch.no_grad()
    def ema_update(self, student: Branch, momentum: float, ok: Tensor | None = None) -> None:
        """This branch's parameters become momentum * own + (1 - momentum) * the student's; buffers stay its own.

        Args:
            ok: a bool on the device: where it is False, all parameters stay. None: they move.
        """
        own: list[Tensor] = list(self.parameters())
        theirs: list[Tensor] = list(student.parameters())
        if ok is None:
            torch._foreach_lerp_(own, theirs, 1 - momentum)
        else:
            torch._foreach_lerp_(own, theirs, [ok * (1 - momentum)] * len(own))
