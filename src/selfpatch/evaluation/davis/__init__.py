"""DAVIS-2016 and DAVIS-2017: video object segmentation by propagating the first frame's labels, and its scores.

`evaluate` measures an encoder, `score` a folder of ready-made results, `repeat_first_mask` the floor.
"""

from selfpatch.evaluation.davis.layout import Clip, open_clips
from selfpatch.evaluation.davis.protocol import LabelPropagation, evaluate, repeat_first_mask
from selfpatch.evaluation.davis.scoring import score

__all__ = ["Clip", "LabelPropagation", "evaluate", "open_clips", "repeat_first_mask", "score"]
