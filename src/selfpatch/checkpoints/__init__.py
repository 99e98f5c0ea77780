"""Weights in and out: run directories, released checkpoints and exports for other libraries."""
