"""Batches that fit the number of images."""

from __future__ import annotations

import pytest

from selfpatch.data.batch_size import fitting_batch_size


@pytest.mark.parametrize(
    ("num_images", "batch_size"), [(1, 1), (9, 8), (54, 16), (127, 16), (256, 32), (1000, 64), (8192, 1024)]
)
def test_a_power_of_two_of_which_an_epoch_has_eight(num_images: int, batch_size: int) -> None:
    assert fitting_batch_size(num_images) == batch_size
