"""DAVIS-2016 and DAVIS-2017: video object segmentation by propagating the first frame's labels, and its scores.

`evaluate` measures an encoder, `score` a folder of ready-made results, `repeat_first_mask` the floor.
"""
