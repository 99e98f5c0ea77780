"""Layers that backbones, heads and losses share."""
