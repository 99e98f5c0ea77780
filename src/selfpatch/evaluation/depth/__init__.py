"""Monocular depth: a linear layer on frozen patch features, on NYU Depth v2 or pairs of images and depth maps."""
