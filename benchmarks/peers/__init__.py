"""Comparison of selfpatch's DINO with that of other packages, from image files to training steps.

Each package trains in a process of its own, so that their dependencies may contradict one another: the modules
`*_dino`, which share nothing with selfpatch but `task`. `pairs` lets two of them take turns.
"""
