"""Strips of a few frames per clip with the masks laid over them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from selfpatch.evaluation.video_segmentation.dataset import PALETTE

HEIGHT = 240
"""Height of the strip in pixels."""
FRAMES = 5
OPACITY = 0.55


class OverlayStrip:
    """Strip of evenly spaced frames, collected while a clip is processed.

    Args:
        num_frames: number of frames of the clip.
    """

    def __init__(self, num_frames: int) -> None:
        self._chosen = {int(i) for i in np.linspace(0, num_frames - 1, FRAMES).round()}
        self._panels: list[Image.Image] = []

    def wants(self, frame: int) -> bool:
        """Return whether the frame of this index belongs to the strip."""
        return frame in self._chosen

    def add(self, image: Image.Image, mask: np.ndarray) -> None:
        """Add an RGB image with its mask, uint8 [H, W] object numbers of the same size."""
        panel = overlay(image, mask)
        width = max(1, round(panel.width * HEIGHT / panel.height))
        self._panels.append(panel.resize((width, HEIGHT), Image.Resampling.BICUBIC))

    def picture(self) -> Image.Image:
        """Return the collected frames side by side."""
        strip = Image.new("RGB", (sum(panel.width for panel in self._panels), HEIGHT))
        left = 0
        for panel in self._panels:
            strip.paste(panel, (left, 0))
            left += panel.width
        return strip


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Return the image tinted with the objects' colours; the background stays as it is."""
    pixels = np.asarray(image, np.float32)
    tinted = (1 - OPACITY) * pixels + OPACITY * PALETTE[mask]
    return Image.fromarray(np.where(mask[..., None] > 0, tinted, pixels).round().astype(np.uint8))
