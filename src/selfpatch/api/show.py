"""Draw what patch features see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfpatch.api.evaluate import load, make_folder
from selfpatch.core.types import Encoder
from selfpatch.visualization.show import show as draw_pictures


def show(
    weights: str | Encoder, images: Sequence[str | Path], out: str | Path, *, device: str = "auto", **options: Any
) -> list[Path]:
    """Draws, for each image, its patch features and what some of its patches resemble; `options` as
    `pictures.show.show` takes them.

    Raises:
        ValueError: weights or an image cannot be read.
    """
    make_folder(out)
    encoder = load(weights, device=device) if isinstance(weights, str) else weights
    return draw_pictures(encoder, images, out, **options)
