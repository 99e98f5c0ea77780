"""Pools: modules that aggregate a set of patches to one token."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.core.reference import fast_path_of
from selfpatch.ops.neighbours import Positives

Gather = Callable[[Tensor], Tensor]
"""Picks, for each query, the entries of its set."""


def attend(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Let one query attend to a set, all heads at once: softmax(q k^T / sqrt(d)) v.

    Queries are [..., H, d], keys and values [..., n, H, d], the result [..., H, d]. `valid` [..., n] marks entries to
    use.
    """
    scores = torch.einsum("...hd,...nhd->...hn", query, keys) * query.shape[-1] ** -0.5
    if valid is not None:
        scores = scores.masked_fill(~valid[..., None, :], float("-inf"))
    return torch.einsum("...hn,...nhd->...hd", scores.softmax(-1), values)


def gather_patches(x: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of x [B, N, ...] at patch indices [B, N, k]: [B, N, k, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None, None], indices]


def mean_of_positives(patches: Tensor, positives: Positives) -> Tensor:
    """Return the mean of the positives of each patch of patches [B, N, D], [B, N, D]."""
    sets = gather_patches(patches, positives.indices)  # [B, N, k, D]
    if positives.valid is None:
        return sets.mean(2)
    weights = positives.valid.to(patches.dtype)  # [B, N, k]
    return torch.einsum("bnk,bnkd->bnd", weights, sets) / weights.sum(-1, keepdim=True)


class _ClassAttention(nn.Module):
    """Attention of a query to [query; patches] with separate layers for q, k and v (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, patches: Tensor, valid: Tensor | None, gather: Gather) -> Tensor:
        """Attend from normalised queries [..., D] to themselves and to the sets that `gather` makes of patches."""

        def in_heads(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(x).unflatten(-1, (self.num_heads, -1))  # [..., H, d]

        keys, values = (gather(in_heads(layer, patches)) for layer in (self.k, self.v))  # [..., n, H, d]
        own_key, own_value = (in_heads(layer, query).unsqueeze(-3) for layer in (self.k, self.v))
        keys, values = torch.cat([own_key, keys], -3), torch.cat([own_value, values], -3)
        if valid is not None:
            valid = F.pad(valid, (1, 0), value=True)  # the query always attends to itself
        return self.proj(attend(in_heads(self.q, query), keys, values, valid).flatten(-2))


class _ClassAttentionBlock(nn.Module):
    """Pre-norm class attention and MLP; only the query has residuals."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, query: Tensor, patches: Tensor, valid: Tensor | None, gather: Gather) -> Tensor:
        """Return the updated query [..., D]; the patches are unnormalised."""
        patches = self.norm1(patches)
        query = query + self.attn(self.norm1(query), patches, valid, gather)
        return query + self.mlp(self.norm2(query))


class PositivePool(nn.Module):
    """Pool of patches that also aggregates the positives of each patch."""

    norm: nn.LayerNorm

    def forward(self, patches: Tensor) -> Tensor:
        """Return one token [..., D] for each set of patches [..., N, D]."""
        raise NotImplementedError

    def pool_positives(self, patches: Tensor, positives: Positives) -> Tensor:
        """Aggregate the positives of each patch of patches [B, N, D] before any norm; return [B, N, D]."""
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
        return self._aggregate(patches)

    def pool_positives_reference(self, patches: Tensor, positives: Positives) -> Tensor:
        """Compute y[b, i] = self(patches[b, positives[b, i]]) for each b, i; arguments as for `pool_positives`."""
        return self._aggregate(gather_patches(patches, positives.indices), positives.valid)

    @fast_path_of(pool_positives_reference)
    def pool_positives(self, patches: Tensor, positives: Positives) -> Tensor:
        """Aggregate the positives of each patch, see `PositivePool`.

        Keys and values do not depend on the query: project each patch once and gather, not each (patch, positive) pair.
        """
        return self._aggregate(patches, positives.valid, partial(gather_patches, indices=positives.indices))

    def _aggregate(self, patches: Tensor, valid: Tensor | None = None, gather: Gather | None = None) -> Tensor:
        """Let one query per set attend to the patches [..., n, D], or to those that `gather` picks for each patch."""
        sets = patches.shape[:-2] if gather is None else patches.shape[:-1]
        query = self.query[0].expand(*sets, -1)
        for block in self.blocks:
            query = block(query, patches, valid, gather or (lambda x: x))
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
        return self.norm(mean_of_positives(patches, positives))
