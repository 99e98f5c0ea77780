"""Unsupervised object discovery: one box an image from patch features alone, by LOST, TokenCut or the class token's
attention, scored by CorLoc."""

from selfpatch.evaluation.discover.layout import LabelledImage, open_images
from selfpatch.evaluation.discover.protocol import evaluate

__all__ = ["LabelledImage", "evaluate", "open_images"]
