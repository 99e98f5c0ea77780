"""Patch-level objectives, one per file."""
