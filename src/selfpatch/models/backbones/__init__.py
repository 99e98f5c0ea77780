"""Backbones: modules that map images to `Tokens`; the only package that builds timm models."""
