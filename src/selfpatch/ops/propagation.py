"""Label propagation in a local window: a patch takes the labels of the most similar patches near it in earlier frames.

Source: the DAVIS-2017 protocol of DINO (Caron et al., arXiv 2104.14294, section 4.2.2), after Jabri et al., "Space-Time
Correspondence as a Contrastive Random Walk" (arXiv 2006.14613).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def propagate_labels(
    query: Tensor,
    context_features: Tensor,
    context_labels: Tensor,
    *,
    radius: int,
    topk: int,
    temperature: float,
    max_cosines: int = 2**26,
) -> Tensor:
    """The labels of one frame's patches, from the labels of the context frames' patches.

    The numbers of `propagate_labels_reference`. The query grid is cut into blocks about as large as the radius, and
    each meets only the part of the context that its windows reach: no [N, T*N] matrix exists at once, and half of its
    products are never computed.

    Args:
        query: [h, w, D] patch features of the frame, of any norm: similarity is the cosine.
        context_features: [T, h, w, D] patch features of the context frames.
        context_labels: [T, C, h, w] their labels, hard (one-hot) or soft.
        radius: rows and columns that a patch sees in each direction around its own place.
        topk: context patches that a patch takes its label from.
        temperature: of the softmax over their cosines.
        max_cosines: that are held at once, so that memory does not grow with the radius; the numbers stay the same to
            float rounding. Those of one patch, T * (2 radius + 1)^2 and somewhat more, are held in any case.

    Returns:
        [C, h, w] soft labels: weighted means of the context's labels.

    Raises:
        ValueError: the shapes do not fit, or radius, topk, temperature or max_cosines is out of range.
    """
    _check(query, context_features, context_labels, radius, topk, temperature)
    if max_cosines < 1:
        raise ValueError(f"max_cosines is {max_cosines}; use 1 or more, e.g. {2**26}")
    h, w, _ = query.shape
    query, keys = F.normalize(query, dim=-1), F.normalize(context_features, dim=-1)
    labels = context_labels.movedim(1, -1)  # [T, h, w, C]
    propagated = labels.new_empty(h, w, labels.shape[-1])
    for rows, near_rows in _blocks(h, radius):
        for columns, near_columns in _blocks(w, radius):
            near = _within(rows, near_rows, radius), _within(columns, near_columns, radius)
            propagated[rows, columns] = _propagate_block(
                query[rows, columns],
                keys[:, near_rows, near_columns],
                labels[:, near_rows, near_columns],
                (near[0].to(query.device), near[1].to(query.device)),
                topk,
                temperature,
                max_cosines,
            )
    return propagated.movedim(-1, 0)


def propagate_labels_reference(
    query: Tensor, context_features: Tensor, context_labels: Tensor, *, radius: int, topk: int, temperature: float
) -> Tensor:
    """As `propagate_labels`, all pairs at once::

    for each patch i of the query frame:
        near    = the patches j of all context frames at most radius rows and radius columns from i
        kept    = the topk of near with the largest cosine(i, j)
        weights = exp(cosine(i, j) / temperature) for j in kept, divided by their sum
        out[i]  = sum of weights[j] * label[j] over kept
    """
    _check(query, context_features, context_labels, radius, topk, temperature)
    h, w, _ = query.shape
    keys = F.normalize(context_features, dim=-1).flatten(0, 2)
    cosine = F.normalize(query, dim=-1).flatten(0, 1) @ keys.T  # [N, T*N]
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([row.flatten(), column.flatten()])
    near = ((place[:, :, None] - place[:, None, :]).abs() <= radius).all(dim=0)  # [N, N]
    cosine = cosine.masked_fill(~near.repeat(1, len(context_features)).to(cosine.device), -torch.inf)
    kept, index = cosine.topk(min(topk, cosine.shape[1]), dim=1)
    weights = (kept / temperature).softmax(dim=1)  # -inf, where a window has fewer than topk patches, weighs 0
    labels = context_labels.movedim(1, -1).flatten(0, 2)  # [T*N, C]
    return torch.einsum("nk,nkc->cn", weights, labels[index]).unflatten(1, (h, w))


def _propagate_block(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    near: tuple[Tensor, Tensor],
    topk: int,
    temperature: float,
    max_cosines: int,
) -> Tensor:
    """query [a, b, D], keys [T, p, q, D], labels [T, p, q, C], near bool [a, p] and [b, q] -> [a, b, C]."""
    rows, columns = query.shape[:2]
    flat_keys, flat_labels = keys.flatten(0, 2), labels.flatten(0, 2)
    chunks = torch.arange(rows * columns, device=query.device).split(max(1, max_cosines // len(flat_keys)))
    parts = []
    for places in chunks:
        cosine = query.flatten(0, 1)[places] @ flat_keys.T  # [n, T*p*q]
        row, column = places // columns, places % columns
        far = ~(near[0][row][:, :, None] & near[1][column][:, None]).flatten(1)  # [n, p*q]
        cosine.view(len(cosine), len(keys), -1).masked_fill_(far[:, None], -torch.inf)
        kept, index = cosine.topk(min(topk, cosine.shape[1]), dim=1)
        weights = (kept / temperature).softmax(dim=1)  # exp only where it counts: on the kept ones
        parts.append(torch.einsum("nk,nkc->nc", weights, flat_labels[index]))
    return torch.cat(parts).unflatten(0, (rows, columns))


def _blocks(length: int, radius: int) -> list[tuple[slice, slice]]:
    """Cuts an axis into even blocks about as long as the radius; beside each, the stretch that its windows reach."""
    count = -(-length // max(radius, 8))
    edges = [length * i // count for i in range(count + 1)]
    return [
        (slice(start, stop), slice(max(0, start - radius), min(length, stop + radius)))
        for start, stop in pairwise(edges)
    ]


def _within(block: slice, window: slice, radius: int) -> Tensor:
    """[block, window] bool: which places of the window lie within the radius of which place of the block."""
    distance = torch.arange(block.start, block.stop)[:, None] - torch.arange(window.start, window.stop)
    return distance.abs() <= radius


def _check(query: Tensor, features: Tensor, labels: Tensor, radius: int, topk: int, temperature: float) -> None:
    if query.ndim != 3 or features.ndim != 4 or features.shape[1:] != query.shape or len(features) == 0:
        raise ValueError(
            f"query {list(query.shape)} and context_features {list(features.shape)} do not fit; "
            "use [h, w, D] and [T, h, w, D]"
        )
    if labels.ndim != 4 or (labels.shape[0], *labels.shape[2:]) != features.shape[:3]:
        raise ValueError(
            f"context_labels {list(labels.shape)} do not fit context_features {list(features.shape)}; use [T, C, h, w]"
        )
    if radius < 0 or topk < 1 or temperature <= 0:
        raise ValueError(
            f"radius {radius}, topk {topk}, temperature {temperature}: use radius >= 0, topk >= 1 and temperature > 0"
        )
