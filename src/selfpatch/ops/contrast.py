"""InfoNCE: the key of the same image or patch against the keys of others."""

import torch
import torch.nn.functional as F
from torch import Tensor


def l2_normalize(x: Tensor) -> Tensor:
    """Normalise vectors [..., E] to norm 1, in float32."""
    return F.normalize(x.float(), dim=-1)


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temp: float) -> Tensor:
    """Compute InfoNCE of each query with its own key and shared negatives (MoCo, arXiv 1911.05722, eq. 1).

        for i:  -log( exp(q_i . k_i / temp) / (exp(q_i . k_i / temp) + sum_j exp(q_i . n_j / temp)) )

    Queries and keys are [..., E], negatives [K, E], all normalised; the result is [...] float32.
    """
    queries, keys = queries.float(), keys.float()
    with torch.autocast(queries.device.type, enabled=False):
        positive = (queries * keys).sum(-1, keepdim=True)  # [..., 1]
        logits = torch.cat([positive, queries @ negatives.float().T], -1) / temp
    return logits.logsumexp(-1) - logits[..., 0]


def batch_info_nce(queries: Tensor, keys: Tensor, first: int, temp: float) -> Tensor:
    """Compute InfoNCE of each query with all keys of a batch (MoCo-v3, arXiv 2104.02057, algorithm 1).

        for i:  -log( exp(q_i . k_{first + i} / temp) / sum_j exp(q_i . k_j / temp) )

    Queries are [b, E] of this process, keys [B, E] of all processes, both normalised; `first` is the index of this
    process's first key. The result is [b] float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() @ keys.float().T / temp
    positives = torch.arange(first, first + len(queries), device=queries.device)
    return F.cross_entropy(logits, positives, reduction="none")
