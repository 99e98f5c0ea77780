"""Pictures of discovered objects: true boxes in white, each method's box in its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.ops.images import in_unit_range

TRUTH = (255, 255, 255)
COLOURS = {"lost": (230, 60, 40), "tokencut": (30, 140, 250), "attention": (250, 190, 20)}


def draw_boxes(pixels: Tensor, truth: Sequence[Box], found: Mapping[str, Box]) -> Image.Image:
    """Draw the boxes into an image [C, H, W], and the methods' names in their colours into its corner."""
    channels = [0, 1, 2] if len(pixels) >= 3 else [0, 0, 0]
    picture = tvf.to_pil_image(in_unit_range(pixels)[channels].clamp(0, 1))
    draw = ImageDraw.Draw(picture)
    for box in truth:
        _outline(draw, box, TRUTH, width=1)
    for method, box in found.items():
        _outline(draw, box, COLOURS[method], width=3)
    for line, method in enumerate(found):
        draw.text((8, 6 + 20 * line), method, COLOURS[method], font_size=16, stroke_width=2, stroke_fill=(0, 0, 0))
    return picture


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
