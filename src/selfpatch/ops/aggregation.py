"""Attention of one query to a set, as SelfPatch aggregates positives (arXiv 2206.07990, section 3.2)."""

import torch
from torch import Tensor


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
