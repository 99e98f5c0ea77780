"""Unsupervised object discovery: one box an image from patch features alone, by LOST, TokenCut or the class token's
attention, scored by CorLoc."""
