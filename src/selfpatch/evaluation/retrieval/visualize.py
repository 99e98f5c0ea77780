"""Pictures of rankings: a query, and the images ranked first with a frame that tells right from wrong."""

from collections.abc import Sequence

from PIL import Image, ImageOps

from selfpatch.evaluation.pictures import CORRECT, WHITE, WRONG, scaled_to_height, side_by_side

HEIGHT, FRAME = 160, 6
"""Height of the images and width of their frames, in pixels."""


def draw_ranking(query: Image.Image, ranked: Sequence[tuple[Image.Image, bool]]) -> Image.Image:
    """Draw a query and ranked RGB images, each with whether it is a positive, from left to right."""
    panels = [(query, WHITE)] + [(image, CORRECT if positive else WRONG) for image, positive in ranked]
    return side_by_side([ImageOps.expand(scaled_to_height(image, HEIGHT), FRAME, colour) for image, colour in panels])
