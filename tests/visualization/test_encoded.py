"""Sizes that pictures are encoded at."""

from __future__ import annotations

import pytest
from PIL import Image

from selfpatch.visualization.encoded import resized


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((854, 480), 480, (848, 480)),
        ((480, 854), 240, (240, 432)),
        ((100, 1000), 50, (48, 496)),
        ((3, 3), 20, (16, 16)),
    ],
)
def test_resized_sides_are_multiples_of_the_patch(size, resolution: int, expected) -> None:
    assert resized(Image.new("RGB", size), resolution, 16).size == expected
