"""The radar: a picture with and without gaps, and long names within it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.visualization.radar import draw_radar


def test_a_radar_is_drawn(tmp_path: Path) -> None:
    spokes = ["segment knn\ncamvid", "depth\nNYU", "match\n" + "a very long name of a data set " * 3, "knn\n_pets $x$"]
    first = {"_hidden & <b>": [0.5, 0.4, None, 0.9]}
    for number, scores in enumerate((first, first | {"other": [0.1, 0.2, 0.3, 1.0]})):
        path = draw_radar(tmp_path / f"{number}.png", spokes, scores, "Scorecard")
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert picture.shape == (880, 880, 3)
        assert (picture[:, [0, -1]] == 255).all(), "nothing is cut off at the sides"
        red, green, blue = picture.transpose(2, 0, 1)
        assert ((red - blue > 120) & (red - green > 120)).any()
        assert bool(((blue - red > 120) & (blue - green > 30)).any()) == (number == 1)
