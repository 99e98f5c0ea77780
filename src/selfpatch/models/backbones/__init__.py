"""Backbones: modules that map images to `Tokens`; the only package that knows timm's models."""
