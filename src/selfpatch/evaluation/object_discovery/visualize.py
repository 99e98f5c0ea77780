"""Pictures of discovered objects: the true boxes in white, the box of each method in its colour."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.visualization.layout import to_image

TRUTH = (255, 255, 255)
COLOURS = {"lost": (230, 75, 53), "tokencut": (30, 140, 250), "attention": (250, 190, 20)}


def draw_boxes(pixels: Tensor, truth: Sequence[Box], found: Mapping[str, Box]) -> Image.Image:
    """Draw the boxes over the image [C, H, W], with the names of the methods in the corner in their colours."""
    picture = to_image(pixels)
    draw = ImageDraw.Draw(picture)
    for box in truth:
        _outline(draw, box, TRUTH, width=1)
    for line, (method, box) in enumerate(found.items()):
        _outline(draw, box, COLOURS[method], width=3)
        draw.text((8, 6 + 20 * line), method, COLOURS[method], font_size=16, stroke_width=2, stroke_fill=(0, 0, 0))
    return picture


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
