"""Picture sheets: a few fixed images, and below them the patch features of one or several networks as colours."""

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.visualization.colours import patch_map, pca_colours, unit_patch_features
from selfpatch.visualization.layout import Panel, Row, lay_out, save_png, to_image

TILE = 224
"""Side of a square image on the sheet, in pixels; others have as many pixels."""
COLUMNS = 8
SUBTITLE = "Colour of a patch: the first three principal components of its features over all these images."
ONE_BASIS_PER_ROW = " Each network has its own: colours compare within a row only."


def picture_sheet(networks: Mapping[str, Encoder], images: Tensor, path: str | Path, *, title: str) -> Path:
    """Draw images [n, C, H, W] above the principal components of their patch features, and write the sheet as a PNG.

    Each network, named by its row's heading, has its own components: colours compare within a row only.

    Raises:
        ValueError: there is no image or no network, or one of the networks cannot take the images.
    """
    for name, given in {"image": images, "network": networks}.items():
        if not len(given):
            raise ValueError(f"there is no {name} to draw; give at least one")
    height, width = images.shape[-2:]
    sides = {name: network.patch_size for name, network in networks.items()}
    for name, side in sides.items():
        if height % side or width % side:
            raise ValueError(
                f"images of {width} x {height} pixels cannot be cut into patches of {side} for {name}; "
                f"use sides that are multiples of {math.lcm(*sides.values())}"
            )
    stretch = math.sqrt(width / height)
    size = round(TILE * stretch), max(1, round(TILE / stretch))
    rows = [("images", [to_image(image).resize(size, Image.Resampling.LANCZOS) for image in images])]
    for name, network in networks.items():
        colours = pca_colours(unit_patch_features(network, images))
        rows.append((name, [patch_map(c, size) for c in colours]))
    bands = range(0, len(images), COLUMNS)
    panels = [Row([Panel(tile) for tile in tiles[i : i + COLUMNS]], name) for i in bands for name, tiles in rows]
    subtitle = SUBTITLE + (ONE_BASIS_PER_ROW if len(networks) > 1 else "")
    return save_png(lay_out(panels, title=title, subtitle=subtitle), path)
