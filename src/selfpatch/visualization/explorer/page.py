"""The explorer page: images, quantised features of one or several networks, and the script that compares them."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfpatch.config.matching import MatchingConfig
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text import counted, visible
from selfpatch.ops.neighbours import check_neighbours, neighbour_table, top_positives
from selfpatch.visualization.colours import pca_colours
from selfpatch.visualization.encoded import EncodedPicture
from selfpatch.visualization.explorer.config import ExploreConfig
from selfpatch.visualization.explorer.quantise import quantise
from selfpatch.visualization.layout import to_image
from selfpatch.visualization.queries import salient_patches

SCRIPTS = ("features.js", "clusters.js", "colours.js", "query.js", "tile.js", "board.js", "readout.js", "main.js")
"""Parts of the page's script, in this order one module."""
JPEG_QUALITY = 85
MEGABYTE = 1e6
FEWEST_COMPONENTS = 8
BASE64 = 4 / 3
"""Characters of base64 for each byte."""


def write_explorer(
    path: str | Path,
    title: str,
    names: Sequence[str],
    networks: Mapping[str, Sequence[EncodedPicture]],
    config: ExploreConfig | None = None,
) -> Path:
    """Write a self-contained page that compares patches of images by the features of networks, and return its path.

    Args:
        path: HTML file to write.
        title: heading of the page.
        names: names of the images.
        networks: by the name of each network, the images as it encoded them; the first one's pixels are shown.
        config: size of the page and how positives are picked; if None, the defaults.

    Raises:
        ValueError: there is no image or no network, an image has too few patches for its positives, or the page would
            be larger than `config.megabytes`.
    """
    config = config or ExploreConfig()
    for what, given in {"image": names, "network": networks}.items():
        if not len(given):
            raise ValueError(f"there is no {what} to show; give at least one")
    shown = next(iter(networks.values()))
    images = [_image(name, encoded.pixels) for name, encoded in zip(names, shown, strict=True)]
    components = _fitting_components(images, list(networks.values()), config)
    data = {
        "title": title,
        "images": images,
        "networks": [_network(name, pictures, components, config) for name, pictures in networks.items()],
        "palettes": _palettes(),
        "start": _first_query(shown[0].features),
    }
    write_atomically(Path(path), _rendered(visible(title), data) + "\n")
    return Path(path)


def _image(name: str, pixels: Tensor) -> dict[str, Any]:
    picture, file = to_image(pixels), io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return {"name": visible(name), "picture": f"data:image/jpeg;base64,{encoded}", "sides": picture.size}


def _fitting_components(
    images: Sequence[Mapping[str, Any]], networks: Sequence[Sequence[EncodedPicture]], config: ExploreConfig
) -> int:
    """Return the number of components with which the page is as large as allowed, at most `config.components`."""
    num_patches = sum(encoded.features.shape[:2].numel() for pictures in networks for encoded in pictures)
    # A patch also has a scale and an offset (8 bytes), a colour (3) and its positives; scripts and styles are the rest.
    rest = sum(len(image["picture"]) for image in images) + BASE64 * num_patches * (11 + 4 * config.k) + 60_000
    fitting = int((config.megabytes * MEGABYTE - rest) / (BASE64 * num_patches))
    if fitting < FEWEST_COMPONENTS:
        needed = (rest + BASE64 * num_patches * FEWEST_COMPONENTS) / MEGABYTE
        raise ValueError(
            f"a page of {counted(len(images), 'image')} with {counted(num_patches, 'patch')} needs {needed:.1f} MB at "
            f"least, and megabytes is {config.megabytes:g}; raise it, lower resolution, or name fewer images"
        )
    return min(config.components, fitting)


def _network(name: str, pictures: Sequence[EncodedPicture], components: int, config: MatchingConfig) -> dict[str, Any]:
    features = torch.cat([encoded.features.flatten(0, 1) for encoded in pictures])  # [M, D]
    quantised = quantise(features, components)
    first = pictures[0]
    return {
        "name": visible(name),
        "dim": features.shape[1],
        "components": quantised.codes.shape[1],
        "patch": first.pixels.shape[-1] // first.features.shape[1],
        "grids": [list(encoded.features.shape[:2]) for encoded in pictures],
        "k": config.k,
        "meanSquare": quantised.mean_square,
        "error": {"rms": quantised.rms_error, "max": quantised.max_error},
        "codes": _packed(quantised.codes),
        "scales": _packed(quantised.scales),
        "offsets": _packed(quantised.offsets),
        "colours": _packed(pca_colours(features[None, None])),
        "positives": _packed(torch.cat([_positives(encoded.features, config) for encoded in pictures])),
    }


def _positives(features: Tensor, config: MatchingConfig) -> Tensor:
    """Return the positives of each patch of features [h, w, D] as flat indices of its image, int32 [N, k], or -1."""
    h, w, dim = features.shape
    check_neighbours(h, w, config)
    positives = top_positives(
        features.reshape(1, h * w, dim), config.k, neighbour_table(h, w, config.window, config.border)
    )
    indices = positives.indices[0]
    return (indices if positives.valid is None else indices.where(positives.valid[0], -1)).int()


def _packed(values: Tensor) -> str:
    """Return the bytes of a tensor, little-endian as in all browsers, in base64."""
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _palettes() -> dict[str, str]:
    """Return colours of similarities, from low to high, and of clusters, neighbours well apart, as bytes in base64."""
    from matplotlib import colormaps

    similarity = colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    clusters = colormaps["tab20"](np.arange(20), bytes=True)[:, :3]
    clusters = np.concatenate([clusters[::2], clusters[1::2]])  # the strong ones, then their lighter twins
    return {"similarity": _packed(torch.from_numpy(similarity)), "clusters": _packed(torch.from_numpy(clusters))}


def _first_query(features: Tensor) -> list[float]:
    """Return the point (x, y) of a patch that stands out in features [h, w, D], in fractions of the image."""
    h, w, _ = features.shape
    row, column = divmod(salient_patches(features, 1)[0], w)
    return [(column + 0.5) / w, (row + 0.5) / h]


def _rendered(title: str, data: Mapping[str, Any]) -> str:
    import jinja2
    from markupsafe import Markup

    loader = jinja2.PackageLoader("selfpatch.visualization.explorer", "assets")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)

    def source(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    template = environment.get_template("explorer.html.jinja")
    return template.render(
        title=title, data=data, style=source("explorer.css"), script=Markup("\n").join(map(source, SCRIPTS))
    )
