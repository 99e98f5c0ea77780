"""Linear classification of frozen features: how much of the classes a linear layer reads out of the image tokens."""

from selfpatch.evaluation.linear.protocol import PRESETS, Preset, evaluate

__all__ = ["PRESETS", "Preset", "evaluate"]
