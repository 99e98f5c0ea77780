"""Weighted k-nearest-neighbour classification of image features."""
