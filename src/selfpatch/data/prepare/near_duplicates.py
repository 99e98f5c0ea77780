"""Near-duplicates in a set of images, by perceptual hashes that are compared in less than quadratic time."""

import itertools
from typing import NamedTuple

import numpy as np
from PIL import Image

BANDS = 8
"""Parts of 16 bits of a hash. Two hashes that differ in at most BANDS - 2 bits agree in two parts."""
MAX_SHIFT = 1000
"""Hashes that agree in two parts are compared with at most this many of their neighbours in sorted order."""


class NearPairs(NamedTuple):
    """Images that resemble an earlier one."""

    later: np.ndarray  # [p] int64, ascending
    earlier: np.ndarray  # [p] int64, the most similar earlier image
    distance: np.ndarray  # [p] int64, number of bits that differ


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Return the 128-bit difference hash of an image, [2] uint64.

    The image is averaged to 9 x 9 grey values. A bit tells whether a value is larger than its left neighbour (64 bits)
    or its upper neighbour (64 bits). Resizing, coding and changes of brightness or contrast alter few of them; cropping
    and mirroring alter many.
    """
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), np.int16)
    bits = np.stack([grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]])
    return np.packbits(bits.reshape(2, 64), axis=1).view(">u8").astype(np.uint64)[:, 0]


def near_pairs(hashes: np.ndarray, max_distance: int) -> NearPairs:
    """Return the images whose hash differs from that of an earlier image in at most `max_distance` bits, up to 6.

    The algorithm::

        equal hashes: sort, and compare neighbours; the first of each group stays
        for each of the 28 pairs of parts of 16 bits:
            sort by those 32 bits, and compare the hashes in which they are equal

    Args:
        hashes: [n, 2] uint64.
        max_distance: at most BANDS - 2 = 6, so that similar hashes are equal in two of the 8 parts.
    """
    if not 0 <= max_distance <= BANDS - 2:
        raise ValueError(f"hashes cannot be compared up to a distance of {max_distance}; use 0 to {BANDS - 2}")
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: the first of a group has the lowest index
    begins = np.r_[True, (hashes[order[1:]] != hashes[order[:-1]]).any(1)] if len(order) else np.zeros(0, bool)
    firsts = order[begins]
    equal = np.stack([order, firsts[np.cumsum(begins) - 1], np.zeros_like(order)], axis=1)[~begins]
    similar = _similar(hashes, np.sort(firsts), max_distance) if max_distance else equal[:0]
    later, earlier, distance = np.concatenate([equal, similar]).T
    best = np.lexsort((earlier, distance, later))
    best = best[np.r_[True, later[best][1:] != later[best][:-1]]] if len(best) else best
    return NearPairs(later[best], earlier[best], distance[best])


def _similar(hashes: np.ndarray, images: np.ndarray, max_distance: int) -> np.ndarray:
    """Return (later, earlier, distance) [p, 3] of the pairs of these images, whose hashes differ from one another."""
    own = hashes[images]
    parts = np.ascontiguousarray(own).view(np.uint16).reshape(-1, BANDS).astype(np.uint32)
    found = [np.zeros((0, 3), np.int64)]
    for a, b in itertools.combinations(range(BANDS), 2):
        keys = parts[:, a] << 16 | parts[:, b]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.arange(len(order) - 1)
        for shift in range(1, MAX_SHIFT + 1):
            first = first[: np.searchsorted(first, len(order) - shift)]
            first = first[keys[first] == keys[first + shift]]
            if not len(first):
                break
            one, other = order[first], order[first + shift]
            distance = np.bitwise_count(own[one] ^ own[other]).sum(1, dtype=np.int64)
            near = distance <= max_distance
            pair = np.sort(np.stack([images[one[near]], images[other[near]]], axis=1), axis=1)
            found.append(np.column_stack([pair[:, 1], pair[:, 0], distance[near]]))
    return np.concatenate(found)
