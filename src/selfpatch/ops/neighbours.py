"""Positive matching: which neighbours of a patch share its content (SelfPatch, arXiv 2206.07990, section 3.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.config.matching import Border, MatchingConfig, Window, check_matching
from selfpatch.core.constants import cached_constant
from selfpatch.core.reference import fast_path_of
from selfpatch.core.text import counted


class NeighbourTable(NamedTuple):
    """Neighbours of each patch of a grid, without the patch itself."""

    indices: Tensor
    """[N, M] int64 flat patch indices, ascending; invalid entries come last and hold the patch's own index."""
    valid: Tensor
    """[N, M] bool."""
    min_neighbours: int
    """Number of neighbours of the patch that has fewest."""


class Positives(NamedTuple):
    """Chosen neighbours of each patch."""

    indices: Tensor
    """[B, N, k] int64 flat patch indices, most similar first."""
    valid: Tensor | None
    """[B, N, k] bool, False where a patch has fewer than k neighbours; None if no patch has."""


def neighbour_table(
    h: int, w: int, window: Window = 3, border: Border = "wrap", device: torch.device | None = None
) -> NeighbourTable:
    """Return the neighbours of every patch of an h x w grid.

    Args:
        h: height of the grid.
        w: width of the grid.
        window: odd side of the square neighbourhood in patches, or `all` for every other patch of the grid.
        border: `wrap` continues at the opposite border like a torus (the released code); `clip` keeps to the image.
        device: device of the table.

    Returns:
        N = h*w rows of M entries: window^2 - 1, or N - 1 for `all`. On a small torus, each patch still counts once.

    Raises:
        ValueError: window or border is none of these, or the grid has one patch only.
    """
    check_matching(1, window, border)
    if h * w < 2:
        raise ValueError(f"a grid of {h} x {w} patches has no neighbours; use larger crops or smaller patches")
    return _table(h, w, window, border, device)


@cached_constant
def _table(h: int, w: int, window: Window, border: Border, device: torch.device | None) -> NeighbourTable:
    patch = torch.arange(h * w, device=device)[:, None]
    if window == "all":
        others = torch.arange(h * w - 1, device=device)
        indices = others + (others >= patch).long()  # without the patch itself
        return NeighbourTable(indices, torch.ones_like(indices, dtype=torch.bool), h * w - 1)
    reach = range(-(window // 2), window // 2 + 1)
    offsets = [(dy, dx) for dy in reach for dx in reach if (dy, dx) != (0, 0)]
    dy, dx = torch.tensor(offsets, device=device).view(-1, 2).unbind(1)
    y, x = patch // w + dy, patch % w + dx  # [N, M]
    inside = torch.ones_like(y, dtype=torch.bool) if border == "wrap" else (y >= 0) & (y < h) & (x >= 0) & (x < w)
    flat = (y % h) * w + x % w
    flat = torch.where(inside & (flat != patch), flat, h * w).sort(dim=1).values  # N stands for "no neighbour"
    again = F.pad(flat[:, 1:] == flat[:, :-1], (1, 0))
    flat = flat.masked_fill(again, h * w).sort(dim=1).values
    valid = flat < h * w
    seen = window if border == "wrap" else window // 2 + 1  # of rows and of columns, by a patch in a corner
    return NeighbourTable(torch.where(valid, flat, patch), valid, min(seen, h) * min(seen, w) - 1)


def check_neighbours(h: int, w: int, config: MatchingConfig) -> None:
    """Raise ValueError if an h x w grid has fewer than k neighbours for each patch."""
    count = neighbour_table(h, w, config.window, config.border, torch.device("cpu")).indices.shape[1]
    if config.k > count:
        raise ValueError(
            f"k is {config.k}, but in a view of {h} x {w} patches a patch has {counted(count, 'neighbour')}; lower k, "
            "or use larger crops"
        )


def neighbour_similarity_reference(features: Tensor, table: NeighbourTable) -> Tensor:
    """Compute the cosine similarity of each patch of features [B, N, D] with each of its neighbours.

        for b, i, m:  s[b, i, m] = cos(f[b, i], f[b, table.indices[i, m]])

    The result is [B, N, M] float32, -inf where the table is not valid.
    """
    f = F.normalize(features.float(), dim=-1)
    similarity = (f[:, :, None] * f[:, table.indices]).sum(-1)
    return similarity.masked_fill(~table.valid, float("-inf"))


@fast_path_of(neighbour_similarity_reference)
def neighbour_similarity(features: Tensor, table: NeighbourTable) -> Tensor:
    """See `neighbour_similarity_reference`; neighbours are gathered from one dense product, not from the features.

    Of large grids that product of all pairs would be larger than the gathered features, and slower.
    """
    if table.indices.shape[1] * features.shape[2] < features.shape[1]:
        return neighbour_similarity_reference(features, table)
    f = F.normalize(features.float(), dim=-1)
    with torch.autocast(f.device.type, enabled=False):  # in bfloat16 many neighbours would tie
        dense = f @ f.transpose(1, 2)  # [B, N, N]
    similarity = dense.gather(2, table.indices.expand(len(features), -1, -1))
    return similarity.masked_fill(~table.valid, float("-inf"))


@torch.no_grad()
def top_positives(features: Tensor, k: int, table: NeighbourTable) -> Positives:
    """Return the k most similar neighbours of each patch, P(i) of the paper.

    The features [B, N, D] are the teacher's patches before any norm.

    Raises:
        ValueError: k exceeds the number of neighbours.
    """
    if k > table.indices.shape[1]:
        raise ValueError(
            f"k is {k}, but a patch has {counted(table.indices.shape[1], 'neighbour')}; lower k or widen the window"
        )
    similarity, index = neighbour_similarity(features, table).topk(k, dim=-1)
    indices = table.indices.expand(len(features), -1, -1).gather(2, index)
    return Positives(indices, None if k <= table.min_neighbours else similarity > float("-inf"))
