"""A branch: backbone, pool and heads together. The student is one; the teacher is the moving average of a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfpatch.core.reference import beside
from selfpatch.core.types import Encoding, Tokens
from selfpatch.models.backbones.base import Backbone, disable_drop_path
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.heads import PositivePool


def image_token(tokens: Tokens, pool: nn.Module | None) -> Tensor:
    """[B, D] the pool's token over the raw patches, else the backbone's CLS token, else the mean of its patches."""
    if pool is not None:
        return pool(tokens.raw_patches.flatten(1, 2))
    return tokens.patches.mean((1, 2)) if tokens.image is None else tokens.image


class Branch(nn.Module):
    """One side of the training: `crops -> Encoding`."""

    def __init__(self, backbone: Backbone, pool: nn.Module | None, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.heads = nn.ModuleDict(heads)

    def forward(self, crops: Sequence[Tensor], masks: Tensor | None = None) -> Encoding:
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
        return Encoding(torch.cat(images), tuple(grids), dict(self.heads.items()), self.pool)

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
    def move_towards_reference(self, student: Branch, momentum: float, ok: Tensor | None = None) -> None:
        """`move_towards`, one parameter after the other."""
        for own, theirs in zip(self.parameters(), student.parameters(), strict=True):
            before = None if ok is None else own.clone()
            own.mul_(momentum).add_(theirs, alpha=1 - momentum)
            if ok is not None and before is not None:
                torch.where(ok, own, before, out=own)

    @beside(move_towards_reference)
    @torch.no_grad()
    def move_towards(self, student: Branch, momentum: float, ok: Tensor | None = None) -> None:
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


class BranchEncoder(nn.Module):
    """A trained backbone and pool as an `Encoder`: what evaluations and pictures see.

    Args:
        normed_patches: give patch features after the trunk's final norm (DINO) instead of the last block's output
            (SelfPatch); the same where the trunk has no final norm.
    """

    def __init__(self, backbone: Backbone, pool: nn.Module | None, *, normed_patches: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.normed_patches = normed_patches
        self.dim, self.patch_size = backbone.dim, backbone.patch_size
        self.mean, self.std = backbone.mean, backbone.std

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> [B, D, h, w]."""
        tokens = self.backbone(images)
        return (tokens.patches if self.normed_patches else tokens.raw_patches).permute(0, 3, 1, 2).float()

    @torch.no_grad()
    def image(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> [B, D]."""
        return image_token(self.backbone(images), self.pool).float()

    @torch.no_grad()
    def image_tokens(self, images: Tensor, blocks: int) -> Tensor:
        """The image tokens of the last so many blocks of a ViT, [B, blocks, D]; a pool is applied to each."""
        if not isinstance(self.backbone, ViT):
            raise ValueError(f"a {self.backbone.shape.family} has one image token; blocks is {blocks}, use 1")
        return torch.stack([image_token(t, self.pool) for t in self.backbone.last_tokens(images, blocks)], 1).float()
