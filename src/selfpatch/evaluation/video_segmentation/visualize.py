"""Masks over their frames, as one strip of a few frames of a clip."""

from __future__ import annotations

import numpy as np
from PIL import Image

from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.pictures import scaled_to_height, side_by_side
from selfpatch.evaluation.video_segmentation.dataset import PALETTE

HEIGHT = 240
"""Height of the strip, in pixels."""
NUM_FRAMES = 5
OPACITY = 0.55


class OverlayStrip:
    """Evenly spaced frames of a clip, collected while it is worked through.

    Args:
        num_frames: number of frames of the clip.
    """

    def __init__(self, num_frames: int) -> None:
        self._chosen = set(evenly_spread(np.arange(num_frames), NUM_FRAMES).tolist())
        self._panels: list[Image.Image] = []

    def wants(self, frame: int) -> bool:
        """Return whether the frame of this index is to be added."""
        return frame in self._chosen

    def add(self, image: Image.Image, mask: np.ndarray) -> None:
        """Add an RGB frame and its mask, uint8 [H, W] object numbers of the same size."""
        self._panels.append(scaled_to_height(overlay(image, mask), HEIGHT))

    def picture(self) -> Image.Image:
        """Return the strip."""
        return side_by_side(self._panels)


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Lay the colours of the objects over the image; the background stays as it is."""
    pixels = np.asarray(image, np.float32)
    tinted = (1 - OPACITY) * pixels + OPACITY * PALETTE[mask]
    return Image.fromarray(np.where(mask[..., None] > 0, tinted, pixels).round().astype(np.uint8))
