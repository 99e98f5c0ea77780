"""Discovery of objects in an image's patch features: LOST, TokenCut, MaskCut, and what a CLS token attends to."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

MAX_PATCHES = 60_000
"""Largest number of patches in a normalised cut, 3.6 GB of pairs: nearly 1000 x 1000 pixels at a patch size of 4."""
MAX_PRODUCTS = 2**25
"""Number of products of patches held at once: 128 MB of float32, 256 MB of float64."""
EDGE_EPS = 1e-5
"""Weight of an edge between dissimilar patches, which keeps the graph connected (TokenCut, arXiv 2202.11539, eq. 4)."""
MAX_EDGES = 0.99
"""Share of similar pairs above which a graph of patches is degenerate: cutting off an object that is unlike all other
patches removes more than 1 % of the pairs if it has 0.5 % of the patches."""
MAX_CORNERS = 2
"""Number of corners of the image that a side of MaskCut's cut may have as the object's."""
MIN_SIZE, MAX_OVERLAP = 0.01, 0.5
"""Share of the patches that a further object of MaskCut has more than, and its largest IoU with an earlier one."""
LANCZOS_STEPS = 400
LANCZOS_TOLERANCE = 1e-9


Flaw = Literal["complete", "sparse", "uniform", "single"]
"""Reason why an object is arbitrary. complete: more than `MAX_EDGES` of the pairs of patches are similar; sparse:
patches have less than one similar patch on average; uniform: all patches have the same attention; single: one patch has
all of the attention that is kept."""


class TooManyPatches(ValueError):
    """An image of more patches than a normalised cut can compare in pairs."""


class DiscoveredObject(NamedTuple):
    """An object on the patch grid."""

    seed: int
    """Index of the patch it grew from, in row order."""
    mask: Tensor
    """[h, w] bool, on the CPU."""
    flaw: Flaw | None = None
    """Reason why the object is arbitrary; None if it is not."""


def lost(features: Tensor, *, num_patches: int = 100) -> DiscoveredObject:
    """Find the object by LOST (Siméoni et al., arXiv 2109.14279, section 3).

    ::

        A = F F^T                                     of features that are not normalised
        degree[i] = number of entries A[i, :] > 0
        lowest = the num_patches patches of lowest degree, the first in row order among equals
        seed = lowest[0]                              an object is smaller than its surroundings
        similar = patches of lowest with A[seed, :] > 0
        object = component of the seed in: sum of A[similar, :] > 0

    Args:
        features: [h, w, D], keys of the last block in the paper.
        num_patches: number of patches of lowest degree, from which the seed is expanded.

    Raises:
        ValueError: num_patches is not positive.
    """
    if num_patches < 1:
        raise ValueError(f"num_patches is {num_patches}; use 1 or more, 100 as in LOST")
    flat = features.flatten(0, 1)
    degree = torch.cat([(rows @ flat.T > 0).sum(1) for rows in _row_chunks(flat)])
    lowest = degree.argsort(stable=True)[:num_patches]
    seed = lowest[0]
    similar = lowest[flat[lowest] @ flat[seed] > 0]
    total = flat @ flat[similar].sum(0)  # the sum of their rows is the row of their sum
    return _component(int(seed), total.view(features.shape[:2]) > 0, _flaw_of_graph(degree))


def lost_reference(features: Tensor, *, num_patches: int = 100) -> DiscoveredObject:
    """Find the object as `lost` does, with all of A at once."""
    flat = features.flatten(0, 1)
    products = flat @ flat.T  # [N, N]
    degree = (products > 0).sum(1)
    lowest = degree.argsort(stable=True)[:num_patches]
    similar = [patch for patch in lowest if products[lowest[0], patch] > 0]
    total = sum((products[patch] for patch in similar), products.new_zeros(len(flat)))
    return _component(int(lowest[0]), total.view(features.shape[:2]) > 0, _flaw_of_graph(degree))


def tokencut(features: Tensor, *, tau: float = 0.2) -> DiscoveredObject:
    """Find the object in features [h, w, D] by TokenCut (Wang et al., arXiv 2202.11539, section 3).

    ::

        v = normalised_cut(features), of the keys of the last block in the paper
        seed = the patch of the largest |v|
        side = v > mean of v, or the other side, whichever holds the seed
        object = component of the seed in that side
    """
    graph = _similarity_graph(features.flatten(0, 1), tau)
    vector = _cut(*graph)
    seed = int(vector.abs().argmax())
    side = vector > vector.mean()
    return _component(seed, (side == side[seed]).view(features.shape[:2]), _flaw_of_graph(graph[0].sum(1)))


def maskcut(features: Tensor, *, tau: float = 0.15, max_objects: int = 3) -> list[DiscoveredObject]:
    """Find up to `max_objects` objects in features [h, w, D] by MaskCut (Wang et al., arXiv 2301.11320, section 3.2).

    ::

        A = graph of `normalised_cut`, of the keys of the last block in the paper
        for each object:
            v = smallest eigenvector but one of A
            side = v > mean of v, or the other side, whichever holds the patch of the largest |v|
            if side has three corners of the image or more: the other side
            seed = the patch of side that is farthest from the mean of v
            object = component of the seed in side, without the patches of earlier objects
            A[i, :] = A[:, i] = EDGE_EPS for each patch i of the object

    The search ends before an object, other than the first, that has at most 1 % of the patches or an IoU of more than
    0.5 with an earlier one. The paper allows one corner; the released code two, as here. That code tries again after
    such an object, on the same graph, and smooths masks by a conditional random field.

    The objects are in the order in which they are found, at least one. The flaw is that of the first one's graph.

    Raises:
        ValueError: max_objects is not positive.
        TooManyPatches: there are more than `MAX_PATCHES` patches.
    """
    if max_objects < 1:
        raise ValueError(f"max_objects is {max_objects}; use 1 or more, 3 as in MaskCut")
    grid = features.shape[:2]
    similar, root = _similarity_graph(features.flatten(0, 1), tau)
    flaw = _flaw_of_graph(similar.sum(1))
    objects, taken = list[DiscoveredObject](), torch.zeros(grid, dtype=torch.bool)
    while len(objects) < max_objects:
        vector = _cut(similar, root)
        side = vector > vector.mean()
        side = (side == side[int(vector.abs().argmax())]).view(grid)
        if int(side[[0, 0, -1, -1], [0, -1, 0, -1]].sum()) > MAX_CORNERS:
            side = ~side
        far = (vector - vector.mean()).abs().view(grid).masked_fill(~side, -1)
        found = _component(int(far.argmax()), side, flaw)
        mask = found.mask & ~taken
        if objects and (not mask.any() or _is_no_further_object(found.mask, objects)):
            break
        objects.append(found._replace(mask=mask))
        taken |= mask
        gone = mask.flatten().to(similar.device)
        similar[gone], similar[:, gone] = False, False
        root = _root_degrees(similar)
    return objects


def _is_no_further_object(mask: Tensor, earlier: Sequence[DiscoveredObject]) -> bool:
    overlaps = [float((mask & one.mask).sum() / (mask | one.mask).sum()) for one in earlier]
    return float(mask.double().mean()) <= MIN_SIZE or max(overlaps) > MAX_OVERLAP


def tau_of_quantile(features: Tensor, quantile: float) -> float:
    """Return the quantile of the cosines of pairs of different patches, for `tau` of `tokencut` and `maskcut`.

    A graph of this tau has 1 - quantile of all pairs, whatever the cosines of a network are, and all pairs that are
    equal to the last of them up to rounding. If not all cosines of features [N, D] fit in memory, those of some
    patches, evenly spread, with all others are taken.
    """
    unit = F.normalize(features, dim=1)
    rows = torch.linspace(0, len(unit) - 1, min(len(unit), max(1, MAX_PRODUCTS // len(unit)))).round().long()
    cosines = unit[rows] @ unit.T
    cosines[torch.arange(len(rows)), rows] = torch.inf  # above all others, whose ranks do not change
    rank = math.ceil(quantile * len(rows) * (len(unit) - 1))
    return float(cosines.flatten().kthvalue(max(1, rank)).values) - 1e-6


def normalised_cut(features: Tensor, *, tau: float = 0.2) -> Tensor:
    """Return the vector that cuts the graph of patches in two (Shi and Malik 2000; arXiv 2202.11539, eq. 2).

    ::

        A[i, j] = 1 if cosine(i, j) > tau else EDGE_EPS      patches above tau are similar
        d[i] = sum of A[i, :]
        (diag(d) - A) v = smallest eigenvalue but one * diag(d) v

    With z = sqrt(d) v this asks for the largest eigenvector but one of A[i, j] / sqrt(d[i] d[j]), whose largest,
    sqrt(d), is known: Lanczos iterations orthogonal to it need some tens of products with A instead of a whole
    decomposition. If they do not converge, `normalised_cut_reference` is used; if its [N, N] float64 would be too
    large, the last iterate is returned.

    Features are [N, D] of any norm; the vector is [N] float64 of unit length in z, and its sign is arbitrary.

    Raises:
        TooManyPatches: there are more than `MAX_PATCHES` patches.
    """
    return _cut(*_similarity_graph(features, tau))


def _cut(similar: Tensor, root: Tensor) -> Tensor:
    """Return the vector of `normalised_cut` of a graph, as `_similarity_graph` returns it."""
    trivial = (root / root.norm())[None]
    fits = similar.numel() <= MAX_PRODUCTS
    weights = similar.double() if fits else similar

    def weigh(z: Tensor) -> Tensor:
        scaled = z / root
        product = torch.cat([rows.double() @ scaled for rows in _row_chunks(weights)])
        product = EDGE_EPS * scaled.sum() + (1 - EDGE_EPS) * product
        return _orthogonalise(product / root, trivial)

    start = torch.randn(len(root), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(root.device)
    steps = min(len(root) - 1, LANCZOS_STEPS)
    vector, converged = _largest_eigenvector(weigh, _orthogonalise(start, trivial), steps)
    return vector / root if converged or not fits else _cut_reference(similar, root)


def normalised_cut_reference(features: Tensor, *, tau: float = 0.2) -> Tensor:
    """Return the vector of `normalised_cut` from all eigenvectors of the graph."""
    return _cut_reference(*_similarity_graph(features, tau))


def _cut_reference(similar: Tensor, root: Tensor) -> Tensor:
    weights = EDGE_EPS + (1 - EDGE_EPS) * similar.double()
    _, vectors = torch.linalg.eigh(weights / (root[:, None] * root))  # in ascending order
    return vectors[:, max(0, len(root) - 2)] / root


def _similarity_graph(features: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return [N, N] bool, whether patches have a cosine above tau, in one byte a pair, and sqrt(d) [N] in float64."""
    if len(features) > MAX_PATCHES:
        raise TooManyPatches(
            f"a normalised cut compares each of {len(features)} patches with all others; at most {MAX_PATCHES} can be: "
            "use smaller images, or lost, which keeps no pairs"
        )
    if features.device.type == "mps":  # which has no float64
        features = features.cpu()
    unit = F.normalize(features, dim=1)
    similar = torch.cat([rows @ unit.T > tau for rows in _row_chunks(unit)])
    return similar, _root_degrees(similar)


def _root_degrees(similar: Tensor) -> Tensor:
    """Return sqrt(d) [N] of a graph [N, N], in float64."""
    return (EDGE_EPS * len(similar) + (1 - EDGE_EPS) * similar.sum(1).double()).sqrt()


def _flaw_of_graph(degree: Tensor) -> Flaw | None:
    """Return what is wrong with a graph, from the number of similar patches [N] of each patch, itself included."""
    others = len(degree) - 1
    if not others:
        return None
    share = (int(degree.sum()) / len(degree) - 1) / others
    return "complete" if share > MAX_EDGES else "sparse" if share * others < 1 else None


def _row_chunks(matrix: Tensor) -> tuple[Tensor, ...]:
    """Split N rows so that the products of a chunk with N vectors are at most `MAX_PRODUCTS`."""
    return matrix.split(max(1, MAX_PRODUCTS // len(matrix)))


def _largest_eigenvector(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, bool]:
    """Find the largest eigenvector of a symmetric operator by Lanczos iterations with full orthogonalisation.

    It lies in the space of `start`. The flag says whether the iterations converged within `steps`.
    """
    basis, diagonal, off_diagonal = [start / start.norm()], list[Tensor](), list[Tensor]()
    for step in range(1, steps + 1):
        product = apply(basis[-1])
        diagonal.append(product @ basis[-1])
        rest = _orthogonalise(product, torch.stack(basis))
        off_diagonal.append(rest.norm())
        closed = bool(off_diagonal[-1] < LANCZOS_TOLERANCE)
        if closed or step == steps or step % 8 == 0:
            inner = torch.stack(off_diagonal)[:-1]
            tridiagonal = torch.stack(diagonal).diag() + inner.diag(1) + inner.diag(-1)
            _, vectors = torch.linalg.eigh(tridiagonal.cpu())
            converged = closed or bool(off_diagonal[-1] * vectors[-1, -1].abs() < LANCZOS_TOLERANCE)
            if converged or step == steps:
                return vectors[:, -1].to(rest.device) @ torch.stack(basis), converged
        basis.append(rest / off_diagonal[-1])
    return start, False


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    """Remove the rows [m, N] from a vector [N]; twice, since the first pass leaves rounding errors."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def attended(attention: Tensor, *, mass: float = 0.6) -> DiscoveredObject:
    """Return the largest component of the patches that hold most of the attention.

    Source: DINO (arXiv 2104.14294, appendix), LOST's baseline "DINO-seg". Patches are removed, the least attended ones
    first, until 1 - mass of the attention is gone.

    The attention is [h, w], not negative and not all 0.

    Raises:
        ValueError: mass is not in (0, 1].
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}; use more than 0 and at most 1, 0.6 as in DINO")
    values, order = attention.flatten().cpu().double().sort()  # moved first, because MPS has no float64
    kept = torch.empty(len(values), dtype=torch.bool)
    kept[order] = values.cumsum(0) / values.sum() > 1 - mass
    flaw: Flaw | None = None
    if len(values) > 1:
        flaw = "uniform" if values[-1] < 1.01 * values.mean() else "single" if kept.sum() == 1 else None
    labels = torch.from_numpy(ndimage.label(kept.view(attention.shape).numpy())[0])
    sizes = labels.flatten().bincount()
    sizes[0] = 0  # removed patches
    mask = labels == sizes.argmax()
    return DiscoveredObject(int(attention.cpu().masked_fill(~mask, -1).argmax()), mask, flaw)


def _component(seed: int, mask: Tensor, flaw: Flaw | None) -> DiscoveredObject:
    """Return the 4-connected component of the seed, or the seed alone if it is not in the mask (a patch of zeros)."""
    labels = torch.from_numpy(ndimage.label(mask.cpu().numpy())[0])
    component = mask.cpu() & (labels == labels.flatten()[seed])
    component.view(-1)[seed] = True
    return DiscoveredObject(seed, component, flaw)


def pixel_box(mask: Tensor, cell: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) in pixels around the patches of a mask, clamped to the image.

    The mask [h, w] has at least one True. `cell` and `size` are (height, width) of a patch and the unpadded image.
    """
    rows, columns = (mask.any(dim).nonzero().flatten() for dim in (1, 0))
    (top, bottom), (left, right) = ((int(index[0]), int(index[-1]) + 1) for index in (rows, columns))
    return left * cell[1], top * cell[0], min(right * cell[1], size[1]), min(bottom * cell[0], size[0])
