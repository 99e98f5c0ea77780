"""Pictures of matches: source and target next to each other, with a line for each keypoint."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from torchvision.transforms import functional as tvf

from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import Picture
from selfpatch.evaluation.correspondence.dataset import Pair
from selfpatch.ops.images import in_unit_range

CORRECT, WRONG, TRUTH = (40, 200, 90), (230, 60, 40), (255, 255, 255)
HEIGHT = 240
"""Height in pixels that both images are resized to."""
RADIUS = 4


def draw_matches(source: Picture, target: Picture, pair: Pair, found: np.ndarray, correct: np.ndarray) -> Image.Image:
    """Draw a line to each transferred keypoint, green if it is correct, and a white ring at its true position.

    Args:
        source: source image of the pair.
        target: target image of the pair.
        pair: pair with the true keypoints.
        found: transferred keypoints [K, 2] in pixels of the target.
        correct: whether each one is close enough, bool [K].
    """
    images = [_rgb(source), _rgb(target)]
    scales = [HEIGHT / image.height for image in images]
    panels = [
        image.resize((max(1, round(image.width * scale)), HEIGHT), Image.Resampling.BICUBIC)
        for image, scale in zip(images, scales, strict=True)
    ]
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), HEIGHT))
    sheet.paste(panels[0], (0, 0))
    sheet.paste(panels[1], (panels[0].width, 0))
    offset = np.array([panels[0].width, 0])
    begins = (pair.source_points + 0.5) * scales[0]
    ends, truths = ((points + 0.5) * scales[1] + offset for points in (found, pair.target_points))
    draw = ImageDraw.Draw(sheet)
    for begin, end, truth, is_correct in zip(begins, ends, truths, correct, strict=True):
        colour = CORRECT if is_correct else WRONG
        draw.line([*begin, *end], colour, width=2)
        draw.ellipse(_disk(begin), fill=colour)
        draw.ellipse(_disk(end), fill=colour)
        draw.ellipse(_disk(truth), outline=TRUTH, width=2)
    return sheet


def _disk(centre: np.ndarray) -> list[float]:
    return [*(centre - RADIUS), *(centre + RADIUS)]


def _rgb(picture: Picture) -> Image.Image:
    pixels = in_unit_range(to_tensor(picture))
    return tvf.to_pil_image(pixels[[0, 1, 2] if len(pixels) >= 3 else [0, 0, 0]].clamp(0, 1))
