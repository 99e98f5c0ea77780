"""Weighted k-nearest-neighbour votes by cosine similarity (Wu et al., arXiv 1805.01978)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.text import counted

MAX_SIMILARITIES = 2**26
"""Similarities, or votes, that exist at once: 256 MB."""
KEYS_AT_ONCE = 1024
"""Keys in a block of a product on a CPU."""


def nearest_neighbours(
    queries: Tensor, keys: Tensor, k: int, *, rows: int | None = None, max_similarities: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the k most similar keys of each query, without the [m, n] similarities ever existing at once.

        for each block of queries:
            for each block of keys:
                best = the k largest of best and the cosine similarities of the two blocks

    Args:
        queries: [m, D] of any norm.
        keys: [n, D] of norm 1.
        k: number of neighbours, at most n.
        rows: queries in a block; defaults to as many as can be compared with all keys at once.
        max_similarities: largest block; defaults to `MAX_SIMILARITIES`.

    Returns:
        [m, k] similarities in descending order, and the [m, k] int64 indices of the keys.
    """
    limit = max_similarities or MAX_SIMILARITIES
    blocks = queries.split(rows or rows_at_once(len(keys)))
    parts = [_nearest_of_block(F.normalize(block, dim=1), keys, k, limit) for block in blocks]
    similarity, index = (torch.cat(part) for part in zip(*parts, strict=True))
    return similarity, index


def _nearest_of_block(queries: Tensor, keys: Tensor, k: int, max_similarities: int) -> tuple[Tensor, Tensor]:
    columns = max(k, max_similarities // max(1, len(queries)))
    similarity, index = _products(queries, keys[:columns]).topk(k, dim=1)
    for first in range(columns, len(keys), columns):
        block = _products(queries, keys[first : first + columns])
        best, index_of_best = block.topk(min(k, block.shape[1]), dim=1)
        similarity, index = torch.cat([similarity, best], 1), torch.cat([index, index_of_best + first], 1)
        similarity, kept = similarity.topk(k, dim=1)
        index = index.gather(1, kept)
    return similarity, index


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Return queries @ keys^T, on a CPU in blocks of keys that its caches hold, which is a fifth faster."""
    if queries.device.type != "cpu":
        return queries @ keys.T
    products = queries.new_empty(len(queries), len(keys))
    for block, part in zip(keys.split(KEYS_AT_ONCE), products.split(KEYS_AT_ONCE, dim=1), strict=True):
        part.copy_(queries @ block.T)
    return products


def rows_at_once(columns: int) -> int:
    """Return how many rows of `columns` values each may exist at once."""
    return max(1, MAX_SIMILARITIES // columns)


def class_votes(similarity: Tensor, labels: Tensor, *, temperature: float, num_classes: int) -> Tensor:
    """Return the votes [m, K] of neighbours that have one class each; the largest is the prediction.

        for each query i, for each of its k neighbours j:
            votes[i, label[j]] += exp((cosine(i, j) - the largest cosine of i) / temperature)

    Wu et al. keep the largest similarity in the exponent. It multiplies all votes of a query by one number, which low
    temperatures make infinite, so it is left out here.

    Args:
        similarity: [m, k] in descending order.
        labels: [m, k] int64 class of each neighbour.
        temperature: softmax temperature of the votes, above 0.
        num_classes: number of classes K.
    """
    check_temperature(temperature)
    votes = similarity.new_zeros(len(similarity), num_classes)
    return votes.scatter_add_(1, labels, ((similarity - similarity[:, :1]) / temperature).exp())


def soft_class_votes(similarity: Tensor, shares: Tensor, *, temperature: float) -> Tensor:
    """Return votes [m, K], the mean of the neighbours' shares [m, k, K], by the softmax of similarities [m, k]."""
    return torch.einsum("nk,nkc->nc", (similarity / temperature).softmax(1), shares)


@torch.no_grad()
def leave_one_out(features: Tensor, labels: Tensor, k: int, *, temperature: float = 0.07) -> float:
    """Return the top-1 accuracy of predicting each feature from its k nearest others, which needs no test set.

    Features are [n, D] of any norm, labels [n] int64.

    Raises:
        ValueError: k is not between 1 and n - 1, or the temperature is not above 0.
    """
    check_temperature(temperature)
    if not 1 <= k < len(features):
        raise ValueError(
            f"k is {k} for {counted(len(features), 'feature')}; leaving one out, use 1 to {len(features) - 1}"
        )
    unit, num_classes = F.normalize(features, dim=1), int(labels.max()) + 1
    predicted = []
    for rows in torch.arange(len(unit), device=unit.device).split(rows_at_once(len(unit))):
        similarity = unit[rows] @ unit.T
        # The feature itself is excluded by its index: a duplicate of it may be just as similar.
        similarity.scatter_(1, rows[:, None], -torch.inf)
        nearest, index = similarity.topk(k, dim=1)
        votes = class_votes(nearest, labels[index], temperature=temperature, num_classes=num_classes)
        predicted.append(votes.argmax(1))
    return float((torch.cat(predicted) == labels).float().mean())


def check_temperature(temperature: float) -> None:
    """Raise ValueError if a softmax temperature is not above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; use a number above 0, e.g. 0.07")
