"""Draw what patch features see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfpatch.api.encoder import load
from selfpatch.config.schema import override
from selfpatch.core.atomic_io import make_folder
from selfpatch.core.types import Encoder
from selfpatch.visualization.config import ShowConfig
from selfpatch.visualization.show import show as draw_pictures


def show(
    weights: str | Path | Encoder,
    images: Sequence[str | Path],
    out: str | Path,
    config: ShowConfig | None = None,
    *,
    queries: Sequence[tuple[float, float]] | None = None,
    device: str = "auto",
    load_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> list[Path]:
    """Draw each image's patch features, and for some patches the similar ones and the positives that are picked.

    Args:
        weights: weights as `selfpatch.load` takes them with `device` and `load_options`, or an encoder.
        images: image files.
        out: folder for the pictures, which are returned in the order of `images`.
        config: resolution, and how positives are picked; if None, the defaults. `settings` overrides its fields.
        queries: points (x, y) whose patches are compared, as fractions of width and height; if None, four distant
            patches that differ.
        device: device to run on.
        load_options: options of `selfpatch.load`.
        settings: fields of `ShowConfig`; they override `config`.

    Raises:
        ValueError: weights or an image cannot be read, or a setting is unknown or out of range.
    """
    config = override(config or ShowConfig(), settings)
    make_folder(out)
    encoder = load(weights, device=device, **(load_options or {})) if isinstance(weights, str | Path) else weights
    return draw_pictures(encoder, images, out, config, queries=queries)
