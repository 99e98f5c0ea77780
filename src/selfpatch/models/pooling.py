"""Pools: modules that aggregate a set of patches to one token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.core.reference import fast_path_of
from selfpatch.ops.aggregation import attend, gather_patches
from selfpatch.ops.neighbours import Positives


class _ClassAttention(nn.Module):
    """Attention of a query to [query; patches] with separate layers for q, k and v (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> Tensor:
        """Split x [..., D] into heads [..., H, d]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of x [..., D], each [..., H, d]."""
        return self.heads(self.k(x)), self.heads(self.v(x))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
        """Attend from a normalised query [..., D] to keys and values [..., n, H, d] of patches; return [..., D]."""
        query_key, query_value = self.keys_and_values(query)
        keys = torch.cat([query_key.unsqueeze(-3), keys], dim=-3)
        values = torch.cat([query_value.unsqueeze(-3), values], dim=-3)
        if valid is not None:
            valid = F.pad(valid, (1, 0), value=True)  # the query always attends to itself
        return self.proj(attend(self.heads(self.q(query)), keys, values, valid).flatten(-2))


class _ClassAttentionBlock(nn.Module):
    """Pre-norm class attention and MLP; only the query has residuals."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def keys_and_values(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of unnormalised patches."""
        return self.attn.keys_and_values(self.norm1(patches))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the updated query [..., D]."""
        query = query + self.attn(self.norm1(query), keys, values, valid)
        return query + self.mlp(self.norm2(query))


class PositivePool(nn.Module):
    """Pool of patches that also aggregates the positives of each patch."""

    norm: nn.LayerNorm

    def forward(self, patches: Tensor) -> Tensor:
        """Return one token [..., D] for each set of patches [..., N, D]."""
        raise NotImplementedError

    def pool_positives(self, patches: Tensor, positives: Positives) -> Tensor:
        """Aggregate the positives of each patch.

        Args:
            patches: [B, N, D] features before any norm.
            positives: [B, N, k] indices, and which of them are valid.

        Returns:
            [B, N, D] aggregates.
        """
        raise NotImplementedError


class ClassAttentionPool(PositivePool):
    """SelfPatch's aggregation h: a learned query attends to a set of patches in two blocks (arXiv 2206.07990, 3.2).

    All patches of an image give the image token y(0). The positives of patch i give its target y(i).
    """

    def __init__(self, dim: int, num_heads: int, *, blocks: int = 2) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, dim))  # two dimensions, so that weight decay applies, as released
        nn.init.trunc_normal_(self.query, std=0.02)
        self.blocks = nn.Sequential(*(_ClassAttentionBlock(dim, num_heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Return one token [..., D] for each set of patches [..., N, D]."""
        return self._aggregate(patches.shape[:-2], patches)

    def pool_positives_reference(self, patches: Tensor, positives: Positives) -> Tensor:
        """Compute y[b, i] = self(patches[b, positives[b, i]]) for each b, i; arguments as for `pool_positives`."""
        sets = gather_patches(patches, positives.indices)  # [B, N, k, D]
        return self._aggregate(sets.shape[:-2], sets, positives.valid)

    @fast_path_of(pool_positives_reference)
    def pool_positives(self, patches: Tensor, positives: Positives) -> Tensor:
        """Aggregate the positives of each patch, see `PositivePool`.

        Keys and values do not depend on the query: they are computed once per patch and gathered, where the reference
        projects each (patch, positive) pair again.
        """
        gather = partial(gather_patches, indices=positives.indices)
        return self._aggregate(patches.shape[:2], patches, positives.valid, gather)

    def _aggregate(
        self,
        sets: torch.Size,
        patches: Tensor,
        valid: Tensor | None = None,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Tensor:
        """Let one query per set attend to the keys and values that `gather` picks for it."""
        query = self.query[0].expand(*sets, -1)
        for block in self.blocks:
            assert isinstance(block, _ClassAttentionBlock)
            keys, values = (gather(x) for x in block.keys_and_values(patches))
            query = block(query, keys, values, valid)
        return self.norm(query)


class AveragePool(PositivePool):
    """Ablation of `ClassAttentionPool`: the mean of the patches, then the same final norm (poster, "Agg" off)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, patches: Tensor) -> Tensor:
        """Return one token [..., D] for each set of patches [..., N, D]."""
        return self.norm(patches.mean(-2))

    def pool_positives(self, patches: Tensor, positives: Positives) -> Tensor:
        """Average the positives of each patch, see `PositivePool`."""
        sets = gather_patches(patches, positives.indices)  # [B, N, k, D]
        if positives.valid is None:
            return self.norm(sets.mean(2))
        weights = positives.valid.to(patches.dtype)  # [B, N, k]
        return self.norm(torch.einsum("bnk,bnkd->bnd", weights, sets) / weights.sum(-1, keepdim=True))
