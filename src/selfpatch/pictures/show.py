"""A picture of what an encoder sees in an image: its patch features, what resembles a patch, and the positives SelfPatch would pick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.data.reading import read_image
from selfpatch.ops.neighbours import Border, Window, check_matching, neighbour_table, top_positives
from selfpatch.pictures.canvas import Panel, Row, draw_marker, lay_out, save_png
from selfpatch.pictures.colour import QUERY_COLOURS
from selfpatch.pictures.features import unit_patch_features
from selfpatch.pictures.maps import heat_over, heat_range, patch_map
from selfpatch.pictures.pca import pca_colours
from selfpatch.pictures.queries import patches_at, salient_patches
from selfpatch.pictures.zoom import MARGIN, Match, draw_match, view_around
from selfpatch.types import Encoder

PANEL = 320
"""Longer side of a panel, in pixels."""
AUTOMATIC_QUERIES = 4


def show(
    encoder: Encoder,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    resolution: int = 480,
    queries: Sequence[tuple[float, float]] | None = None,
    k: int = 4,
    window: Window = 3,
    border: Border = "wrap",
) -> list[Path]:
    """Draws one picture for each image: the image with its query patches marked, the principal components of its patch features, and
    for each query its cosine similarity to all patches and its k positives in the window around it (SelfPatch, section 3.1).

    Args:
        paths: image files.
        out: folder that the pictures are written to, each as `<image's name>.png`.
        resolution: short side that images are resized to, in pixels; both sides are rounded to multiples of the patch size.
        queries: points (x, y) as fractions of width and height; None: four patches that differ and lie apart.
        k, window, border: how positives are picked, as in `selfpatch.ops.neighbours`.

    Returns:
        The files written, in the order of `paths`.

    Raises:
        ValueError: an image cannot be read, the resolution is below a patch, a query lies outside the image, or k, window and border
            make no sense together.
    """
    check_matching(k, window, border)
    if resolution < encoder.patch_size:
        raise ValueError(
            f"resolution {resolution} is below one patch of {encoder.patch_size} pixels; use e.g. {30 * encoder.patch_size}"
        )
    written = []
    for path, name in zip(paths, _distinct_names(paths), strict=True):
        image = resized(read_image(path), resolution, encoder.patch_size)
        features = unit_patch_features(encoder, torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
        grid = (features.shape[0], features.shape[1])
        chosen = salient_patches(features, AUTOMATIC_QUERIES) if queries is None else patches_at(queries, grid)
        matches = find_positives(features, chosen, k, window, border)
        picture = draw(image, features, matches, title=Path(path).name, window=window, border=border)
        written.append(save_png(picture, Path(out) / f"{name}.png"))
    return written


def resized(image: Image.Image, resolution: int, patch_size: int) -> Image.Image:
    """The image with its short side near `resolution`, its aspect ratio kept up to rounding, both sides multiples of the patch size."""
    scale = resolution / min(image.size)
    width, height = (max(1, round(side * scale / patch_size)) * patch_size for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def find_positives(features: Tensor, queries: Sequence[int], k: int, window: Window, border: Border) -> list[Match]:
    """The positives of some patches. features: [h, w, D]."""
    h, w, _ = features.shape
    table = neighbour_table(h, w, window, border)
    positives = top_positives(features.reshape(1, h * w, -1), k, table)
    picked, valid = positives.indices[0], torch.ones(h * w, k, dtype=torch.bool)
    if positives.valid is not None:
        valid = positives.valid[0]
    return [Match(q, table.indices[q][table.valid[q]].tolist(), picked[q][valid[q]].tolist()) for q in queries]


def draw(
    image: Image.Image, features: Tensor, matches: Sequence[Match], *, title: str, window: Window, border: Border
) -> Image.Image:
    """The whole picture: image and principal components in the first column, then a column for each query."""
    h, w, dim = features.shape
    size = _panel_size(image.size)
    small = image.resize(size, Image.Resampling.LANCZOS)
    marked = small.copy()
    above = [Panel(marked, "image and query patches" if matches else "image")]
    below = [Panel(patch_map(pca_colours(features[None])[0], size), "principal components")]
    extent = max(h, w) if window == "all" else window + 2 * MARGIN
    for number, match in enumerate(matches, start=1):
        colour = QUERY_COLOURS[(number - 1) % len(QUERY_COLOURS)]
        row, column = divmod(match.query, w)
        similarity = (features @ features[row, column]).clamp(-1, 1)  # [h, w]
        scale = heat_range(similarity)
        heat = heat_over(small, similarity, scale)
        for panel in (marked, heat):
            draw_marker(panel, ((column + 0.5) / w * size[0], (row + 0.5) / h * size[1]), colour, number)
        view = view_around(match.query, (h, w), size, extent, wrap=border == "wrap" and window != "all")
        above.append(Panel(heat, "cosine", number, colour, scale))
        zoom = draw_match(image, match, (h, w), view, colour)
        below.append(Panel(zoom, _positives_caption(similarity.flatten(), match), number, colour))
    subtitle = f"{w} x {h} patches of {image.width // w} pixels, {dim} features each"
    return lay_out([Row(above), Row(below)], title=title, subtitle=subtitle)


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = PANEL / max(size)
    return round(size[0] * scale), round(size[1] * scale)


def _positives_caption(similarity: Tensor, match: Match) -> str:
    if not match.picked:
        return "no positives"
    values = similarity[match.picked]
    return f"{len(match.picked)} positives, cosine {values.min():.2f} to {values.max():.2f}"


def _distinct_names(paths: Sequence[str | Path]) -> list[str]:
    """File names without their endings; ones that come again get a number."""
    names: list[str] = []
    for path in paths:
        stem, name, copy = Path(path).stem, Path(path).stem, 2
        while name in names:
            name, copy = f"{stem}-{copy}", copy + 1
        names.append(name)
    return names
