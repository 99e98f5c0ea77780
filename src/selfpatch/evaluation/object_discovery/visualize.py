"""Pictures of discovered objects: the true boxes in white, the box of each method in its colour, and a legend."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.evaluation.object_discovery.metrics import best_iou
from selfpatch.evaluation.pictures import BLACK, WHITE, with_legend
from selfpatch.visualization.layout import to_image

COLOURS = {"lost": (230, 75, 53), "tokencut": (30, 140, 250), "attention": (250, 190, 20)}


def draw_boxes(pixels: Tensor, truth: Sequence[Box], found: Mapping[str, Box]) -> Image.Image:
    """Draw the boxes over the image [C, H, W]; the legend names the methods and their largest IoU with a true box."""
    picture = to_image(pixels)
    draw = ImageDraw.Draw(picture)
    for box in truth:
        _outline(draw, box, BLACK, width=4)
        _outline(draw, box, WHITE, width=2)
    for method, box in found.items():
        _outline(draw, box, COLOURS[method], width=3)
    methods = {f"{method}, IoU {best_iou(box, truth):.2f}": COLOURS[method] for method, box in found.items()}
    return with_legend(picture, {"annotated": WHITE} | methods)


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
