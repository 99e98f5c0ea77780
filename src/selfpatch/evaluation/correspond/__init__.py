"""Semantic correspondence on SPair-71k: keypoints carried from one image to another by the nearest patch features."""

from selfpatch.evaluation.correspond.layout import Pair, open_pairs
from selfpatch.evaluation.correspond.presets import PRESETS
from selfpatch.evaluation.correspond.protocol import evaluate

__all__ = ["PRESETS", "Pair", "evaluate", "open_pairs"]
