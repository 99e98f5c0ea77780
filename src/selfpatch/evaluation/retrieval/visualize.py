"""Pictures of rankings: a query, and the images ranked first with a frame that tells right from wrong."""

from collections.abc import Sequence

from PIL import Image, ImageOps

from selfpatch.evaluation.pictures import scaled_to_height, side_by_side

CORRECT, WRONG, QUERY = (0, 158, 115), (230, 75, 53), (255, 255, 255)
"""Bluish green and vermilion, told apart with any kind of colour vision, and white."""
HEIGHT, FRAME = 160, 6
"""Height of the images and width of their frames, in pixels."""


def draw_ranking(query: Image.Image, ranked: Sequence[tuple[Image.Image, bool]]) -> Image.Image:
    """Draw a query and ranked RGB images, each with whether it is a positive, from left to right."""
    panels = [(query, QUERY)] + [(image, CORRECT if positive else WRONG) for image, positive in ranked]
    return side_by_side([ImageOps.expand(scaled_to_height(image, HEIGHT), FRAME, colour) for image, colour in panels])
