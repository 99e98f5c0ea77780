"""COCO detection and instance segmentation: Mask R-CNN on a pre-trained backbone, AP of boxes and of masks."""

from selfpatch.evaluation.detect.dataset import Split, open_split
from selfpatch.evaluation.detect.presets import PRESETS, Preset
from selfpatch.evaluation.detect.protocol import average_precision, evaluate

__all__ = ["PRESETS", "Preset", "Split", "average_precision", "evaluate", "open_split"]
