"""Pictures of matches: source and target side by side, with one line for each keypoint."""

import numpy as np
from PIL import Image, ImageDraw

from selfpatch.core.text import counted
from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import Picture
from selfpatch.evaluation.correspondence.dataset import Pair
from selfpatch.evaluation.pictures import LINE_HEIGHT, MATCHES, draw_match, scaled_to_height, side_by_side, with_legend
from selfpatch.visualization.layout import to_image

HEIGHT = 240
"""Height that both images are resized to, in pixels."""


def draw_matches(source: Picture, target: Picture, pair: Pair, found: np.ndarray, correct: np.ndarray) -> Image.Image:
    """Draw lines to the matched points, green where they are correct, with captions and a legend.

    `found` [K, 2] holds the matched points in pixels of the target, and `correct` [K] is bool.
    """
    images = [to_image(to_tensor(picture)) for picture in (source, target)]
    panels = [scaled_to_height(image, HEIGHT) for image in images]
    scales = [np.divide(panel.size, image.size) for panel, image in zip(panels, images, strict=True)]
    captions = "source", f"target: {correct.sum()} of {counted(len(correct), 'point')} right"
    sheet = side_by_side(panels, captions)
    down, offset = np.array([0, LINE_HEIGHT]), np.array([panels[0].width, LINE_HEIGHT])
    starts = (pair.source_points + 0.5) * scales[0] + down
    ends, truths = ((points + 0.5) * scales[1] + offset for points in (found, pair.target_points))
    draw = ImageDraw.Draw(sheet)
    for start, end, truth, hit in zip(starts, ends, truths, correct, strict=True):
        draw_match(draw, start, end, truth, correct=bool(hit))
    return with_legend(sheet, MATCHES)
