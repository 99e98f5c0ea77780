"""Near-duplicates: the hash survives coding, the search finds what comparing all pairs finds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from skimage import data

from selfpatch.data.prepare.near_duplicates import near_pairs, perceptual_hash


def by_all_pairs(hashes: np.ndarray, max_distance: int) -> list[tuple[int, int, int]]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(-1, dtype=int)
    found = []
    for later in range(1, len(hashes)):
        earlier = int(distances[later, :later].argmin())
        if distances[later, earlier] <= max_distance:
            found.append((later, earlier, int(distances[later, earlier])))
    return found


@pytest.mark.parametrize("max_distance", [0, 1, 4, 6])
def test_the_search_finds_the_nearest_earlier_hash(max_distance: int) -> None:
    rng = np.random.default_rng(max_distance)
    centres = rng.integers(0, 2**64, (20, 2), np.uint64)
    hashes = centres[rng.integers(0, 20, 300)]
    for i in range(300):  # between 0 and 9 bits of each are flipped
        for bit in rng.choice(128, rng.integers(0, 10), replace=False):
            hashes[i, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    assert [tuple(map(int, pair)) for pair in zip(*near_pairs(hashes, max_distance), strict=True)] == by_all_pairs(
        hashes, max_distance
    )


def test_no_images_and_one_image_have_no_duplicates() -> None:
    for count in (0, 1):
        assert not len(near_pairs(np.zeros((count, 2), np.uint64), 6).later)


def test_a_distance_that_the_search_cannot_guarantee_is_refused() -> None:
    with pytest.raises(ValueError, match="distance of 7; use 0 to 6"):
        near_pairs(np.zeros((2, 2), np.uint64), 7)


def test_the_hash_survives_resizing_coding_and_brightness_and_tells_photographs_apart() -> None:
    photographs = [Image.fromarray(image) for image in (data.astronaut(), data.coffee(), data.cat(), data.rocket())]
    hashes = [perceptual_hash(image) for image in photographs]
    for image, own in zip(photographs, hashes, strict=True):
        coded = io.BytesIO()
        image.resize((200, 170), Image.Resampling.BICUBIC).save(coded, "JPEG", quality=40)
        for changed in (Image.open(coded), ImageEnhance.Brightness(image).enhance(0.8)):
            assert np.bitwise_count(perceptual_hash(changed) ^ own).sum() <= 4
        others = [np.bitwise_count(own ^ other).sum() for other in hashes if other is not own]
        assert min(others) > 20
