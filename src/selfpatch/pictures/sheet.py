"""The picture sheet of a run: a few fixed images, and what the network makes of their patches by now."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from selfpatch.pictures.canvas import Panel, Row, lay_out, save_png
from selfpatch.pictures.features import unit_patch_features
from selfpatch.pictures.maps import patch_map, to_image
from selfpatch.pictures.pca import pca_colours
from selfpatch.types import Encoder

TILE = 224
COLUMNS = 8
SUBTITLE = "A patch's colour: the first three principal components of its features, over all these images together."


def picture_sheet(
    encoder: Encoder,
    images: Tensor,
    path: str | Path,
    *,
    title: str,
    reference: Encoder | None = None,
    reference_name: str = "untrained",
) -> Path:
    """Draws images above the principal components of their patch features, and writes the sheet as a PNG.

    Args:
        images: [n, C, S, S], uint8 or float32, S a multiple of the encoder's patch size.
        title: the line on top, such as `photos · epoch 12 of 200`.
        reference: an encoder to compare with, such as the same network before training; drawn as a third row.
        reference_name: what the third row is headed with.

    Returns:
        `path`.

    Raises:
        ValueError: no image, or images that the encoder cannot take.
    """
    if not len(images):
        raise ValueError("there is no image to draw; give at least one")
    size = (TILE, TILE)
    rows = [("images", [to_image(image).resize(size, Image.Resampling.LANCZOS) for image in images])]
    for heading, network in [("patch features", encoder), (f"patch features, {reference_name}", reference)]:
        if network is not None:
            colours = pca_colours(unit_patch_features(network, images))
            rows.append((heading, [patch_map(c, size) for c in colours]))
    bands = range(0, len(images), COLUMNS)
    laid = [Row([Panel(p) for p in tiles[i : i + COLUMNS]], heading) for i in bands for heading, tiles in rows]
    return save_png(lay_out(laid, title=title, subtitle=SUBTITLE), path)
