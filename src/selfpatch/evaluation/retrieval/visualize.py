"""Pictures of rankings: a query, and the images ranked first with a frame that tells right from wrong."""

from collections.abc import Sequence

from PIL import Image, ImageOps

from selfpatch.evaluation.pictures import CORRECT, WHITE, WRONG, captioned, scaled_to_height, side_by_side, with_legend

HEIGHT, FRAME = 160, 6
"""Height of the images and width of their frames, in pixels."""


def draw_ranking(query: Image.Image, ranked: Sequence[tuple[Image.Image, bool]]) -> Image.Image:
    """Draw a query and ranked RGB images, each with whether it is a positive, from left to right, with a legend."""
    panels = [("query", query, WHITE)] + [
        (str(rank), image, CORRECT if positive else WRONG) for rank, (image, positive) in enumerate(ranked, start=1)
    ]
    framed = (
        captioned(ImageOps.expand(scaled_to_height(image, HEIGHT), FRAME, colour), text)
        for text, image, colour in panels
    )
    return with_legend(side_by_side([*framed]), {"right": CORRECT, "wrong": WRONG})
