"""Decoders from image files to upright pictures."""
