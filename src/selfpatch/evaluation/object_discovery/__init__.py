"""Unsupervised object discovery: one box per image by LOST, TokenCut or class attention, scored by CorLoc."""
