"""Masks over their frames, as one strip of a few frames of a clip."""

import numpy as np
from PIL import Image

from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.pictures import scaled_to_height
from selfpatch.evaluation.video_segmentation.clip import PALETTE

HEIGHT = 240
"""Height of the strip, in pixels."""
NUM_FRAMES = 5
OPACITY = 0.55


def shown_frames(num_frames: int) -> set[int]:
    """Return the indices of the frames of a clip that its strip shows, evenly spread."""
    return set(evenly_spread(np.arange(num_frames), NUM_FRAMES).tolist())


def panel(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Return an RGB frame of the strip with its mask, uint8 [H, W] object numbers of the same size."""
    return scaled_to_height(overlay(image, mask), HEIGHT)


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Lay the colours of the objects over the image; the background stays as it is."""
    pixels = np.asarray(image, np.float32)
    tinted = (1 - OPACITY) * pixels + OPACITY * PALETTE[mask]
    return Image.fromarray(np.where(mask[..., None] > 0, tinted, pixels).round().astype(np.uint8))
