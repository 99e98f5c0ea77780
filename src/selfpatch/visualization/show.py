"""What an encoder sees in an image: its patch features, what resembles a patch, and the positives SelfPatch picks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.pillow import Picture, read_picture
from selfpatch.ops.neighbours import Border, Window, check_matching, neighbour_table, top_positives
from selfpatch.visualization.canvas import Panel, Row, draw_marker, lay_out, save_png
from selfpatch.visualization.colour import SERIES
from selfpatch.visualization.features import unit_patch_features
from selfpatch.visualization.maps import heat_over, heat_range, patch_map, to_image
from selfpatch.visualization.pca import pca_colours
from selfpatch.visualization.queries import patches_at, salient_patches
from selfpatch.visualization.zoom import MARGIN, Match, draw_match, view_around

PANEL, TALL_PANEL = 320, 280
"""Width of a panel in pixels, for images that are wide and for those that are tall; the captions need as much."""
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
    """Draws one picture for each image: the image with its query patches marked, the principal components of its patch
    features, and for each query its cosine similarity to all patches and its k positives in the window around it
    (SelfPatch, arXiv 2206.07990, section 3.1).

    Args:
        paths: image files.
        out: folder that the pictures are written to, each as `<image's name>.png`. No image of `paths` is overwritten.
        resolution: short side that images are resized to, in pixels; both sides become multiples of the patch size.
        queries: points (x, y) as fractions of width and height; None: four patches that differ and lie apart.
        k, window, border: how positives are picked, as in `selfpatch.ops.neighbours`.

    Returns:
        The files written, in the order of `paths`.

    Raises:
        ValueError: an image cannot be read, the resolution is below a patch, a query lies outside the image, or k,
            window and border make no sense together, or the encoder gives features that are not finite.
    """
    check_matching(k, window, border)
    if resolution < encoder.patch_size:
        raise ValueError(f"resolution {resolution} is below one patch of {encoder.patch_size} pixels; use a larger one")
    targets = _targets(paths, Path(out))
    for path, target in zip(paths, targets, strict=True):
        picture = read_picture(path, channels=len(encoder.mean))
        pixels = to_tensor(resized(picture, resolution, encoder.patch_size))
        features = unit_patch_features(encoder, pixels[None])[0]
        if not features.isfinite().all():
            raise ValueError(f"the encoder gives features of {path} that are not finite; use weights from before that")
        grid = (features.shape[0], features.shape[1])
        chosen = salient_patches(features, AUTOMATIC_QUERIES) if queries is None else patches_at(queries, grid)
        matches = find_positives(features, chosen, k, window, border)
        sheet = draw(to_image(pixels), features, matches, title=Path(path).name, window=window, border=border)
        save_png(sheet, target)
    return targets


def resized(picture: Picture, resolution: int, patch_size: int) -> Picture:
    """The picture with its short side near `resolution`, its shape kept up to rounding, sides multiples of a patch."""
    scale = resolution / min(picture.size)
    width, height = (max(1, round(side * scale / patch_size)) * patch_size for side in picture.size)
    return resize_picture(picture, width, height)


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
        colour = SERIES[(number - 1) % len(SERIES)]
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
    width, height = size
    panel_width = PANEL if width >= height else TALL_PANEL
    return panel_width, max(1, round(panel_width * height / width))


def _positives_caption(similarity: Tensor, match: Match) -> str:
    if not match.picked:
        return "no positives"
    values = similarity[match.picked]
    return f"{len(match.picked)} positives, cosine {values.min():.2f} to {values.max():.2f}"


def _targets(paths: Sequence[str | Path], out: Path) -> list[Path]:
    """Where each picture goes: named as its image, with a number where the name is taken, be it by one of `paths`."""
    taken = {Path(path).resolve() for path in paths}
    targets = []
    for path in paths:
        target, copy = out / f"{Path(path).stem}.png", 2
        while target.resolve() in taken:
            target, copy = out / f"{Path(path).stem}-{copy}.png", copy + 1
        taken.add(target.resolve())
        targets.append(target)
    return targets
