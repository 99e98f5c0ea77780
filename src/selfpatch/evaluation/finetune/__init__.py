"""Fine-tuning the whole network on labelled images: ImageNet, a share of its labels, or any other data set."""

from selfpatch.evaluation.finetune.presets import PRESETS, Preset
from selfpatch.evaluation.finetune.protocol import evaluate

__all__ = ["PRESETS", "Preset", "evaluate"]
