"""Label propagation in a local window: a patch takes the labels of the most similar patches near it in earlier frames.

Source: the DAVIS-2017 protocol of DINO (Caron et al., arXiv 2104.14294, section 4.2.2), after Jabri et al., "Space-Time
Correspondence as a Contrastive Random Walk" (arXiv 2006.14613).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.reference import fast_path_of

Frames = Tensor | Sequence[Tensor]
"""One map for each context frame, stacked or in a sequence."""
Window = Literal["square", "circle"]
"""Shape of a patch's window: rows and columns, or the Euclidean distance, at most the radius."""
MAX_COSINES = 2**26
"""Default number of cosines held at once: 256 MB in float32."""


def propagate_labels_reference(
    query: Tensor,
    context_features: Frames,
    context_labels: Frames,
    *,
    radius: int,
    topk: int,
    temperature: float,
    window: Window = "square",
    normalised: bool = False,
    max_cosines: int = MAX_COSINES,
) -> Tensor:
    """Propagate labels with all pairs at once as in the released code; arguments as for `propagate_labels`.

    ::

        for each patch i of the query frame:
            near    = patches j of all context frames at most radius rows and radius columns from i (square),
                      or at most radius patches (circle)
            kept    = the topk of near with the largest cosine(i, j)
            weights = exp(cosine(i, j) / temperature) for j in kept, divided by their sum
            out[i]  = sum of weights[j] * label[j] over kept

    The released code keeps more than topk if several equal the last of them. Its exponential overflows in float32 at
    temperatures below 0.012. It ignores `normalised` and `max_cosines`.
    """
    _check(query, context_features, context_labels, radius, topk, temperature, max_cosines)
    h, w, _ = query.shape
    query = F.normalize(query, dim=-1).flatten(0, 1)
    keys = F.normalize(torch.stack(tuple(context_features)), dim=-1).flatten(1, 2)
    affinity = torch.exp(query @ keys.mT / temperature)  # [T, N, N]
    rows, columns = (_extents(side, window, query.device) for side in (h, w))
    affinity *= _inside(rows[:, None, :, None], columns[:, None], radius, window).view(h * w, h * w)
    affinity = affinity.transpose(1, 2).flatten(0, 1)  # [T*N, N]
    kept, index = affinity.topk(min(topk, len(affinity)), dim=0)
    weights = torch.zeros_like(affinity).scatter_(0, index, kept)
    weights = weights / weights.sum(dim=0)
    labels = torch.stack(tuple(context_labels)).transpose(0, 1).flatten(1)  # [C, T*N]
    return (labels @ weights).unflatten(1, (h, w))


@fast_path_of(propagate_labels_reference)
def propagate_labels(
    query: Tensor,
    context_features: Frames,
    context_labels: Frames,
    *,
    radius: int,
    topk: int,
    temperature: float,
    window: Window = "square",
    normalised: bool = False,
    max_cosines: int = MAX_COSINES,
) -> Tensor:
    """Propagate labels of context frames to the patches of one frame; `propagate_labels_reference` holds the loop.

    The query grid is cut into blocks somewhat smaller than the radius, and each block is compared only with the part of
    the context that its windows reach: no [N, T*N] matrix exists at once, and most of its products are never computed.

    Args:
        query: [h, w, D] patch features of the frame, of any norm: similarity is the cosine.
        context_features: T maps [h, w, D] of patch features.
        context_labels: T maps [C, h, w] of labels, hard (one-hot) or soft.
        radius: number of patches that a patch sees in each direction.
        topk: number of context patches that a patch takes its label from; ties are broken arbitrarily.
        temperature: temperature of the softmax over their cosines.
        window: shape of the window, `square` (DINO) or `circle` (DINOv3).
        normalised: whether all features have length 1 already, which saves normalising a frame in every context.
        max_cosines: number of cosines held at once, so that memory does not grow with the radius; results are equal to
            float rounding. The cosines of one patch, at most T * (2 radius + 1)^2, are held in any case.

    Returns:
        [C, h, w] soft labels, weighted means of the context's labels.

    Raises:
        ValueError: the shapes do not fit, or radius, topk, temperature or max_cosines is out of range.
    """
    _check(query, context_features, context_labels, radius, topk, temperature, max_cosines)
    keys = tuple(context_features)
    if not normalised:
        query, keys = F.normalize(query, dim=-1), tuple(F.normalize(frame, dim=-1) for frame in keys)
    kept, index = _most_similar(query, keys, radius, window, topk, max_cosines)
    weights = (kept / temperature).softmax(dim=-1)  # -inf, where a window has fewer than topk patches, weighs 0
    labels = torch.stack(tuple(context_labels)).movedim(1, -1).flatten(0, 2)  # [T*N, C]
    return torch.einsum("hwk,hwkc->chw", weights, labels[index])


def _most_similar(
    query: Tensor, keys: Sequence[Tensor], radius: int, window: Window, topk: int, max_cosines: int
) -> tuple[Tensor, Tensor]:
    """Return cosines and flat context indices, [h, w, topk] each, of the best patches in each patch's window.

    `query` and each key are [h, w, D] of length 1; -inf fills up if a window has fewer than topk patches.
    """
    h, w, _ = query.shape
    count = min(topk, len(keys) * h * w)
    kept = query.new_full((h, w, count), -torch.inf)
    index = torch.zeros(h, w, count, dtype=torch.long, device=query.device)
    flat_index = torch.arange(h * w, device=query.device).view(h, w)
    down, across = (_extents(extent, window, query.device) for extent in (h, w))
    side = _block_side(h, w, len(keys), radius, max_cosines)
    for columns, near_columns in _blocks(w, radius, side):
        strip = torch.stack([frame[:, near_columns] for frame in keys])  # [T, h, q, D]: any of its rows without a copy
        for rows, near_rows in _blocks(h, radius, side):
            queries = query[rows, columns].flatten(0, 1)  # [n, D]
            near = strip[:, near_rows].flatten(1, 2)  # [T, p*q, D]
            cosine = queries.expand(len(keys), -1, -1) @ near.mT  # [T, n, p*q]
            inside = _inside(down[rows, None, near_rows, None], across[columns, None, near_columns], radius, window)
            band = torch.where(inside, 0.0, -torch.inf).to(query.dtype)  # [a, b, p, q]
            values, frame, patch = _top(cosine, band.flatten(2).flatten(0, 1), topk)
            found = frame * (h * w) + flat_index[near_rows, near_columns].flatten()[patch]  # [n, topk]
            block = rows, columns, slice(values.shape[1])
            kept[block], index[block] = (x.view(*band.shape[:2], -1) for x in (values, found))
    return kept, index


def _top(cosine: Tensor, band: Tensor, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest cosines of [T, n, m], their frames and their patches, [n, topk] each.

    They are among the topk patches with the best maximum over frames, which is far cheaper than searching all. `band`
    [n, m] is 0 within the window and -inf beyond.
    """
    best, patch = cosine.amax(0).add_(band).topk(min(topk, band.shape[1]), dim=1)
    candidates = cosine.gather(2, patch.expand(len(cosine), -1, -1)).masked_fill_(best == -torch.inf, -torch.inf)
    candidates = candidates.transpose(0, 1).flatten(1)  # [n, T*topk]
    values, index = candidates.topk(min(topk, candidates.shape[1]), dim=1)
    return values, index // patch.shape[1], patch.gather(1, index % patch.shape[1])


def _block_side(h: int, w: int, frames: int, radius: int, max_cosines: int) -> int:
    """Return the side of a block of query patches: two thirds of the radius (measured fastest), less to save memory."""
    side = max(8, 2 * radius // 3)
    while side > 1 and frames * side**2 * min(h, side + 2 * radius) * min(w, side + 2 * radius) > max_cosines:
        side -= 1
    return side


def _blocks(length: int, radius: int, side: int) -> list[tuple[slice, slice]]:
    """Cut an axis into even blocks of at most `side`; return each with the range that its windows reach."""
    count = -(-length // side)
    edges = [length * i // count for i in range(count + 1)]
    return [
        (slice(start, stop), slice(max(0, start - radius), min(length, stop + radius)))
        for start, stop in pairwise(edges)
    ]


def _extents(length: int, window: Window, device: torch.device) -> Tensor:
    """Return how far the indices of an axis are apart, [length, length]; squared for a circle."""
    index = torch.arange(length, device=device)
    apart = index[:, None] - index
    return apart.square() if window == "circle" else apart.abs()


def _inside(rows: Tensor, columns: Tensor, radius: int, window: Window) -> Tensor:
    """Return whether extents along both axes, which broadcast, lie within a window."""
    return rows + columns <= radius**2 if window == "circle" else (rows <= radius) & (columns <= radius)


def _check(
    query: Tensor, features: Frames, labels: Frames, radius: int, topk: int, temperature: float, max_cosines: int
) -> None:
    maps, label_maps = (list(dict.fromkeys(tuple(frame.shape) for frame in frames)) for frames in (features, labels))
    if query.ndim != 3 or maps != [tuple(query.shape)]:
        raise ValueError(
            f"query {list(query.shape)} and context_features of {' and '.join(map(str, maps)) or 'no frame'} do not "
            "fit; use [h, w, D] and one or more maps of the same shape"
        )
    if len(labels) != len(features) or [shape[1:] for shape in label_maps] != [query.shape[:2]]:
        raise ValueError(
            f"context_labels, {len(labels)} maps of {' and '.join(map(str, label_maps))}, do not fit context_features, "
            f"{len(features)} of {tuple(query.shape)}; use [C, h, w] for each [h, w, D]"
        )
    if radius < 0 or topk < 1 or temperature <= 0:
        raise ValueError(
            f"radius {radius}, topk {topk}, temperature {temperature}: use radius >= 0, topk >= 1 and temperature > 0"
        )
    if max_cosines < 1:
        raise ValueError(f"max_cosines is {max_cosines}; use 1 or more, e.g. {MAX_COSINES}")
