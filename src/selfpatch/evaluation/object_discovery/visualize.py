"""Pictures of discovered objects: the true boxes in white, the boxes of each method in its colour, and a legend."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.evaluation.object_discovery.metrics import best_iou
from selfpatch.evaluation.pictures import BLACK, WHITE, with_legend
from selfpatch.visualization.layout import to_image

COLOURS = {"lost": (230, 75, 53), "tokencut": (30, 140, 250), "maskcut": (60, 200, 110), "attention": (250, 190, 20)}


def draw_boxes(pixels: Tensor, truth: Sequence[Box], found: Mapping[str, Sequence[Box]]) -> Image.Image:
    """Draw the boxes over the image [C, H, W]; the legend names the methods and their largest IoU with a true box.

    Of several boxes of a method, the first one is thicker, and the IoU is its.
    """
    picture = to_image(pixels)
    draw = ImageDraw.Draw(picture)
    for box in truth:
        _outline(draw, box, BLACK, width=4)
        _outline(draw, box, WHITE, width=2)
    methods = {}
    for method, (first, *others) in found.items():
        for box in others:
            _outline(draw, box, COLOURS[method], width=2)
        _outline(draw, first, COLOURS[method], width=3)
        more = f", {len(others)} more" if others else ""
        methods[f"{method}, IoU {best_iou(first, truth):.2f}{more}"] = COLOURS[method]
    return with_legend(picture, {"annotated": WHITE} | methods)


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
