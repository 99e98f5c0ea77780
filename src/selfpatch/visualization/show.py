"""Pictures of what an encoder sees: its patch features, similarity maps, and the positives that SelfPatch picks."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.models.debiased import debiased
from selfpatch.visualization import colours
from selfpatch.visualization.config import ShowConfig
from selfpatch.visualization.encoded import check_resolution, encode_picture, read_file
from selfpatch.visualization.layout import SERIES, Marker, Panel, Row, lay_out, save_png, to_image
from selfpatch.visualization.queries import CONTEXT, Match, find_positives, patches_at, salient_patches, zoom

PANEL, TALL_PANEL = 320, 300
"""Width of a panel in pixels, for wide and for tall images; the captions need as much."""
LONGEST = 4
"""Largest number of short sides that a panel is long; longer images are squeezed: a strip would take gigabytes."""
NUM_AUTOMATIC_QUERIES = 4


def show(
    encoder: Encoder,
    paths: Sequence[str | Path],
    out: str | Path,
    config: ShowConfig | None = None,
    *,
    queries: Sequence[tuple[float, float]] | None = None,
) -> list[Path]:
    """Draw one picture for each image file into the folder `out`, and return the files in the order of `paths`.

    It holds the image with its query patches marked, the principal components of its patch features, and for each query
    its cosine similarity to all patches and its k positives in the window around it. Queries are points (x, y) as
    fractions of width and height; if None, four patches that differ and lie apart. A picture has the name of its image;
    of images of one name, also those of the folders that differ. No image of `paths` is overwritten.

    Raises:
        ValueError: an image cannot be read, the resolution is below one patch, a query lies outside the image, or the
            encoder gives non-finite features.
    """
    config = config or ShowConfig()
    check_resolution(encoder, config.resolution)
    names, encoder = _distinct_names(paths), debiased(encoder, config.debias)
    targets = _targets(names, paths, Path(out))
    for path, name, target in zip(paths, names, targets, strict=True):
        encoded = encode_picture(encoder, read_file(encoder, path), config.resolution, path)
        features = encoded.features
        h, w, _ = features.shape
        chosen = salient_patches(features, NUM_AUTOMATIC_QUERIES) if queries is None else patches_at(queries, (h, w))
        matches = find_positives(features, chosen, config.k, config.window, config.border)
        save_png(draw(to_image(encoded.pixels), features, matches, config, title=name.as_posix()), target)
    return targets


def draw(
    image: Image.Image, features: Tensor, matches: Sequence[Match], config: ShowConfig, *, title: str
) -> Image.Image:
    """Draw the sheet of one image: image and principal components first, then one column for each query."""
    h, w, dim = features.shape
    panel_width = PANEL if image.width >= image.height else TALL_PANEL
    size = panel_width, round(panel_width * min(max(1 / LONGEST, image.height / image.width), LONGEST))
    small = image.resize(size, Image.Resampling.LANCZOS)
    extent = max(h, w) if config.window == "all" else config.window + 2 * CONTEXT
    wrap = config.border == "wrap" and config.window != "all"
    markers, above, below = [], [], []
    for number, match in enumerate(matches, start=1):
        row, column = divmod(match.query, w)
        point = (column + 0.5) / w * size[0], (row + 0.5) / h * size[1]
        marker = Marker(number, SERIES[(number - 1) % len(SERIES)], point)
        markers.append(marker)
        similarity = (features @ features[row, column]).clamp(-1, 1)  # [h, w]
        scale = colours.similarity_range(similarity)
        above.append(Panel(colours.similarity_over(small, similarity, scale), "cosine", marker, scale, [marker]))
        surroundings = zoom(image, match, (h, w), size, extent=extent, wrap=wrap, colour=marker.colour)
        cosines = similarity.flatten()[match.picked]
        caption = "no positives"
        if len(cosines):
            caption = f"{counted(len(cosines), 'positive')}, cosine {cosines.min():.2f} to {cosines.max():.2f}"
        below.append(Panel(surroundings, caption, marker))
    marked = Panel(small, "image and query patches" if matches else "image", markers=markers)
    components = Panel(colours.patch_map(colours.pca_colours(features[None])[0], size), "principal components")
    subtitle = f"{w} × {h} patches of {image.width // w} pixels, {dim} features each"
    return lay_out([Row([marked, *above]), Row([components, *below])], title=title, subtitle=subtitle)


def _distinct_names(paths: Sequence[str | Path]) -> list[Path]:
    """Return the ends of paths that tell each image from those of the same name: `dog/0.jpg`, `cow/0.jpg` and `1.jpg`.

    They do not depend on the order of the images.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # as the user names them, through links
    absolute = [path.relative_to(path.anchor) for path in absolute]
    ends = []
    for path in absolute:
        others = {other for other in absolute if other.stem == path.stem and other.parent != path.parent}
        count = 1
        while count < len(path.parts) and any(_end(other, count) == _end(path, count) for other in others):
            count += 1
        ends.append(Path(*path.parts[-count:]))
    return ends


def _end(path: Path, count: int) -> tuple[str, ...]:
    return path.with_suffix("").parts[-count:]


def _targets(names: Sequence[Path], paths: Sequence[str | Path], out: Path) -> list[Path]:
    """Return a file for each picture, named as its image, with its folders where `names` has them.

    It is numbered if the name is taken, also by one of `paths`.
    """
    taken = {Path(path).resolve() for path in paths}
    targets = []
    for name in names:
        stem = "-".join(name.with_suffix("").parts)
        target, copy = out / f"{stem}.png", 2
        while target.resolve() in taken:
            target, copy = out / f"{stem}-{copy}.png", copy + 1
        taken.add(target.resolve())
        targets.append(target)
    return targets
