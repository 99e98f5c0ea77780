"""Semantic correspondence on SPair-71k: keypoints transferred to another image by nearest patch features."""
