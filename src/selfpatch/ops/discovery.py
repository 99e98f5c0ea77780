"""One object of an image, found in its patch features without labels: LOST and TokenCut, and the patches that a class
token attends to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

MOST_PATCHES = 60_000
"""Of an image in TokenCut, 3.6 GB of pairs: nearly 1000 x 1000 pixels at a patch of 4."""
MAX_PRODUCTS = 2**25
"""Products of patches that are held at once: 128 MB of float32, 256 MB of float64."""
FAINT_EDGE = 1e-5
"""Weight of an edge between patches that are not alike (TokenCut, arXiv 2202.11539, eq. 4), so that all hang
together."""
LANCZOS_STEPS = 400
LANCZOS_TOLERANCE = 1e-9


class ImageEntry(NamedTuple):
    """An object on the patch grid."""

    seed: int
    """The patch it grew from: its number in row order."""
    mask: Tensor
    """[h, w] bool, on the CPU."""


def lost(features: Tensor, *, num_patches: int = 100) -> ImageEntry:
    """The object by LOST (Siméoni et al., arXiv 2109.14279, section 3)::

        A = F F^T                                     of features that are not normalised
        degree[i] = how many A[i, :] > 0
        lowest = the patches of lowest degree, so many
        seed = lowest[0]                              an object is smaller than what is around it
        similar = those of lowest with A[seed, :] > 0
        object = the part that hangs together with the seed of: sum of A[similar, :] > 0

    Of equal degrees the first in row order counts as the lowest. Rows of A are made in parts, never all at once.

    Args:
        features: [h, w, D], keys of the last block in the paper.
        num_patches: of lowest degree, from which the seed is expanded.

    Raises:
        ValueError: num_patches is not positive.
    """
    _check_expansion(num_patches)
    flat = features.flatten(0, 1)
    degree = torch.cat([(rows @ flat.T > 0).sum(1) for rows in flat.split(_rows_at_once(len(flat)))])
    lowest = degree.argsort(stable=True)[:num_patches]
    seed = lowest[0]
    similar = lowest[flat[lowest] @ flat[seed] > 0]
    total = flat @ flat[similar].sum(0)  # the sum of their rows is the row of their sum
    return _grown(int(seed), total.view(features.shape[:2]) > 0)


def lost_reference(features: Tensor, *, num_patches: int = 100) -> ImageEntry:
    """As `lost`, with all of A."""
    _check_expansion(num_patches)
    flat = features.flatten(0, 1)
    products = flat @ flat.T  # [N, N]
    lowest = (products > 0).sum(1).argsort(stable=True)[:num_patches]
    similar = [patch for patch in lowest if products[lowest[0], patch] > 0]
    total = sum((products[patch] for patch in similar), products.new_zeros(len(flat)))
    return _grown(int(lowest[0]), total.view(features.shape[:2]) > 0)


def _check_expansion(num_patches: int) -> None:
    if num_patches < 1:
        raise ValueError(f"num_patches is {num_patches}; use 1 or more, 100 as in LOST")


def tokencut(features: Tensor, *, tau: float = 0.2) -> ImageEntry:
    """The object by TokenCut (Wang et al., arXiv 2202.11539, section 3)::

        v = normalised_cut(features)
        seed = the patch of the largest |v|
        side = v > mean of v, or the other side, whichever holds the seed
        object = the part of it that hangs together with the seed

    Args:
        features: [h, w, D], keys of the last block in the paper.
        tau: cosine above which patches are alike.
    """
    vector = normalised_cut(features.flatten(0, 1), tau=tau)
    seed = int(vector.abs().argmax())
    side = vector > vector.mean()
    if not side[seed]:
        side = ~side
    return _grown(seed, side.view(features.shape[:2]))


def normalised_cut(features: Tensor, *, tau: float = 0.2) -> Tensor:
    """The vector that cuts the graph of patches in two (Shi and Malik 2000; arXiv 2202.11539, eq. 2)::

        A[i, j] = 1 if cosine(i, j) > tau else FAINT_EDGE
        d[i] = sum of A[i, :]
        (diag(d) - A) v = smallest eigenvalue but one * diag(d) v

    With z = sqrt(d) v this asks for the largest eigenvector but one of A[i, j] / sqrt(d[i] d[j]), whose largest,
    sqrt(d), is known: Lanczos iterations orthogonal to it need some tens of products with A instead of a whole
    decomposition. Where they do not settle, `normalised_cut_reference` decides; for as many patches as would make its
    [N, N] float64 too large, the nearest that they came.

    Args:
        features: [N, D] of any norm.
        tau: cosine above which patches are alike.

    Returns:
        [N] float64 of unit length in z; its sign means nothing.
    """
    alike = _alike(features, tau)
    degree = _degree(alike)
    root = degree.sqrt()
    trivial = root / root.norm()
    weights = alike.double() if alike.numel() <= MAX_PRODUCTS else alike

    def weigh(z: Tensor) -> Tensor:
        scaled = z / root
        product = FAINT_EDGE * scaled.sum() + (1 - FAINT_EDGE) * _times(weights, scaled)
        return _without(product / root, trivial[None])

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(root), generator=generator, dtype=torch.float64).to(root.device)
    found, settled = _largest_eigenvector(weigh, _without(start, trivial[None]), min(len(root) - 1, LANCZOS_STEPS))
    if not settled and alike.numel() <= MAX_PRODUCTS:
        return normalised_cut_reference(features, tau=tau)
    return found / root


def normalised_cut_reference(features: Tensor, *, tau: float = 0.2) -> Tensor:
    """As `normalised_cut`, from all eigenvectors of the graph."""
    alike = _alike(features, tau)
    root = _degree(alike).sqrt()
    weights = FAINT_EDGE + (1 - FAINT_EDGE) * alike.double()
    _, vectors = torch.linalg.eigh(weights / (root[:, None] * root))  # in ascending order
    return vectors[:, max(0, len(root) - 2)] / root


def _alike(features: Tensor, tau: float) -> Tensor:
    """[N, N] bool: which patches have a cosine above tau; all pairs are held at once, a byte each.

    Raises:
        ValueError: there are more than `MOST_PATCHES`.
    """
    if len(features) > MOST_PATCHES:
        raise ValueError(
            f"TokenCut compares each of {len(features)} patches with every other; at most {MOST_PATCHES} can be: "
            "use smaller images, or lost, which keeps no pairs"
        )
    if features.device.type == "mps":  # which has no float64
        features = features.cpu()
    unit = F.normalize(features, dim=1)
    return torch.cat([rows @ unit.T > tau for rows in unit.split(_rows_at_once(len(unit)))])


def _degree(alike: Tensor) -> Tensor:
    return FAINT_EDGE * len(alike) + (1 - FAINT_EDGE) * alike.sum(1).double()


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """A square matrix, of which a part at a time becomes float64 if it is not, times a vector."""
    return torch.cat([rows.double() @ vector for rows in matrix.split(_rows_at_once(len(matrix)))])


def _largest_eigenvector(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, bool]:
    """Of a symmetric operator, in the space that `start` lies in, by Lanczos iterations with full orthogonalisation;
    and whether so many steps found it."""
    basis, diagonal, beside = [start / start.norm()], list[Tensor](), list[Tensor]()
    for step in range(1, steps + 1):
        product = apply(basis[-1])
        diagonal.append(product @ basis[-1])
        rest = _without(product, torch.stack(basis))
        beside.append(rest.norm())
        closed = bool(beside[-1] < LANCZOS_TOLERANCE)
        if closed or step == steps or step % 8 == 0:
            inner = torch.stack(beside[:-1]) if step > 1 else rest.new_zeros(0)
            tridiagonal = torch.stack(diagonal).diag() + inner.diag(1) + inner.diag(-1)
            _, vectors = torch.linalg.eigh(tridiagonal.cpu())
            settled = closed or bool(beside[-1] * vectors[-1, -1].abs() < LANCZOS_TOLERANCE)
            if settled or step == steps:
                return vectors[:, -1].to(rest.device) @ torch.stack(basis), settled
        basis.append(rest / beside[-1])
    return start, False


def _without(vector: Tensor, basis: Tensor) -> Tensor:
    """What of a vector [N] is orthogonal to the rows [m, N]; twice, for the first time leaves rounding behind."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def attended(attention: Tensor, *, mass: float = 0.6) -> ImageEntry:
    """The largest part that hangs together of the patches that hold most of the attention (DINO, arXiv 2104.14294,
    appendix; LOST's baseline "DINO-seg")::

        from the least attended patch on, patches go until 1 - mass of the attention is gone

    Args:
        attention: [h, w], not negative, not all 0.
        mass: share of the attention that is kept.

    Raises:
        ValueError: mass is not in (0, 1].
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}; use more than 0 and at most 1, 0.6 as in DINO")
    values, order = attention.flatten().double().cpu().sort()
    kept = torch.empty(len(values), dtype=torch.bool)
    kept[order] = values.cumsum(0) / values.sum() > 1 - mass
    labels, _ = ndimage.label(kept.view(attention.shape).numpy())
    sizes = torch.from_numpy(labels).flatten().bincount()
    sizes[0] = 0  # what is not kept
    mask = torch.from_numpy(labels) == int(sizes.argmax())
    return ImageEntry(int(attention.cpu().masked_fill(~mask, -1).argmax()), mask)


def _grown(seed: int, mask: Tensor) -> ImageEntry:
    """The 4-connected component of the seed; the seed alone where it is not in the mask, as a patch of zeros may be."""
    labels, _ = ndimage.label(mask.cpu().numpy())
    own = labels.flat[seed]
    component = torch.from_numpy(labels == own) if own else torch.zeros(labels.shape, dtype=torch.bool)
    component.view(-1)[seed] = True
    return ImageEntry(seed, component)


def pixel_box(mask: Tensor, cell: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) around the patches of a mask, right and bottom within the image.

    Args:
        mask: [h, w] bool, of which some are True.
        cell: height and width of a patch in pixels.
        size: height and width of the image before it was padded.
    """
    rows, columns = (mask.any(dim).nonzero().flatten() for dim in (1, 0))
    (top, bottom), (left, right) = ((int(places[0]), int(places[-1]) + 1) for places in (rows, columns))
    return left * cell[1], top * cell[0], min(right * cell[1], size[1]), min(bottom * cell[0], size[0])


def _rows_at_once(n: int) -> int:
    return max(1, MAX_PRODUCTS // n)
