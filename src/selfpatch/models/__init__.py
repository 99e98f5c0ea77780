"""Backbones, heads, pools, and what they are made of."""
