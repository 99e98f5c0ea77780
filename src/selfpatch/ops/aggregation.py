"""Attention of one query to a set, as SelfPatch aggregates positives (arXiv 2206.07990, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Let one query attend to a set, all heads at once: softmax(q k^T / sqrt(d)) v.

    Args:
        query: [..., H, d].
        keys: [..., n, H, d].
        values: [..., n, H, d].
        valid: [..., n] bool, False for entries to leave out; if None, all count.

    Returns:
        [..., H, d].
    """
    scores = torch.einsum("...hd,...nhd->...hn", query, keys) * query.shape[-1] ** -0.5
    if valid is not None:
        scores = scores.masked_fill(~valid[..., None, :], float("-inf"))
    return torch.einsum("...hn,...nhd->...hd", scores.softmax(-1), values)


def gather_patches(x: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of x at the given patches.

    Args:
        x: [B, N, ...].
        indices: [B, N, k] patch indices.

    Returns:
        [B, N, k, ...].
    """
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, indices]
