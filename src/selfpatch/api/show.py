"""Draw what patch features see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfpatch.api.evaluate import load, make_folder
from selfpatch.core.types import Encoder
from selfpatch.visualization.config import ShowConfig
from selfpatch.visualization.show import show as draw_pictures


def show(
    weights: str | Encoder,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    queries: Sequence[tuple[float, float]] | None = None,
    device: str = "auto",
    **settings: Any,
) -> list[Path]:
    """Draw, for each image, its patch features and what some of its patches resemble.

    Args:
        weights: an encoder, or weights as `load` takes them.
        images: image files.
        out: folder for the pictures.
        queries: points (x, y) as fractions of width and height. If None, four patches that differ and lie apart.
        device: device on which weights are loaded, such as `cpu` or `cuda:0`.
        settings: those of `ShowConfig`, such as `resolution=480`.

    Returns:
        The files written, in the order of `images`.

    Raises:
        ValueError: a setting is out of range, or the weights or an image cannot be read.
    """
    config = ShowConfig(**settings)
    make_folder(out)
    encoder = load(weights, device=device) if isinstance(weights, str) else weights
    return draw_pictures(encoder, images, out, config, queries=queries)
