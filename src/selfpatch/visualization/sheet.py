"""Picture sheets: a few fixed images, and what one or several networks make of their patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.visualization.canvas import Panel, Row, lay_out, save_png
from selfpatch.visualization.features import unit_patch_features
from selfpatch.visualization.maps import patch_map, to_image
from selfpatch.visualization.pca import pca_colours

TILE = 224
COLUMNS = 8
SUBTITLE = "A patch's colour: the first three principal components of its features, over all these images together."
OF_SEVERAL = " Each network has components of its own: colours compare along its row, not between rows."


def picture_sheet(networks: Mapping[str, Encoder], images: Tensor, path: str | Path, *, title: str) -> Path:
    """Draws images above the principal components of their patch features, and writes the sheet as a PNG.

    Below the images each network has a row of maps. The components are those of its own features over all images, so
    that a colour means one thing along a row and another in the next.

    Args:
        networks: what each row is headed with -> the network that is drawn there, from above to below.
        images: [n, C, S, S], uint8 or float32, S a multiple of every network's patch size.
        title: the line on top, such as `photos · epoch 12 of 200`.

    Returns:
        `path`.

    Raises:
        ValueError: no image, no network, or images that one of the networks cannot take.
    """
    if not len(images):
        raise ValueError("there is no image to draw; give at least one")
    if not networks:
        raise ValueError("there is no network whose patches could be drawn; give at least one")
    _check_patch_sizes(networks, images)
    size = (TILE, TILE)
    rows = [("images", [to_image(image).resize(size, Image.Resampling.LANCZOS) for image in images])]
    for name, network in networks.items():
        colours = pca_colours(unit_patch_features(network, images))
        rows.append((name, [patch_map(c, size) for c in colours]))
    bands = range(0, len(images), COLUMNS)
    laid = [Row([Panel(p) for p in tiles[i : i + COLUMNS]], heading) for i in bands for heading, tiles in rows]
    subtitle = SUBTITLE + (OF_SEVERAL if len(networks) > 1 else "")
    return save_png(lay_out(laid, title=title, subtitle=subtitle), path)


def _check_patch_sizes(networks: Mapping[str, Encoder], images: Tensor) -> None:
    """Raises ValueError, before anything is computed, where a network cannot cut the images into patches."""
    height, width = images.shape[-2:]
    for name, network in networks.items():
        if height % network.patch_size or width % network.patch_size:
            common = math.lcm(*(other.patch_size for other in networks.values()))
            raise ValueError(
                f"images of {width} x {height} pixels cannot be cut into patches of {network.patch_size} for {name}; "
                f"use sides that are multiples of {common}"
            )
