"""The settings of `show`."""

from __future__ import annotations

import pytest

from selfpatch.visualization.config import ShowConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 0}, "resolution is 0"), ({"k": 0}, "k is 0; use a number above 0"),
        ({"window": 1}, "window is 1; use an odd number from 3 on"), ({"border": "mirror"}, "one of: wrap, clip"),
        ({"windows": 3}, "did you mean 'window'"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShowConfig(**settings)
