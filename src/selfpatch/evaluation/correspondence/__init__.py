"""Semantic correspondence on SPair-71k: keypoints carried from one image to another by the nearest patch features."""
