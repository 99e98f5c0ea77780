"""Pictures of depths: image, truth and prediction side by side, with the same colours for the same depth."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from selfpatch.evaluation.pictures import scaled_to_height, side_by_side

HEIGHT = 240
COLOURS = "viridis"
"""Colour map of matplotlib that any colour vision can read: dark is near."""


def draw_depth(image: Image.Image, depth: np.ndarray, prediction: np.ndarray, low: float, high: float) -> Image.Image:
    """Draw an RGB image, its depths and the predicted ones [h, w] in metres, with captions; black is not known.

    Colours span the depths that are known, of those between `low` and `high`.
    """
    known = (depth > low) & (depth < high)
    nearest, farthest = (depth[known].min(), depth[known].max()) if known.any() else (low, high)
    maps = []
    for values, shown in ((depth, known), (prediction, np.ones_like(known))):
        share = ((values - nearest) / max(float(farthest - nearest), 1e-6)).clip(0, 1)
        colours = (colormaps[COLOURS](share)[..., :3] * 255).round().astype(np.uint8)
        maps.append(Image.fromarray(np.where(shown[..., None], colours, 0).astype(np.uint8)))
    size = scaled_to_height(image, HEIGHT).size
    panels = [scaled_to_height(image, HEIGHT), *(m.resize(size, Image.Resampling.NEAREST) for m in maps)]
    captions = "image", f"truth, {nearest:.1f} m (dark) to {farthest:.1f} m (bright)", "prediction, same colours"
    return side_by_side(panels, captions)
