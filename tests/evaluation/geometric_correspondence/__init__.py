"""Geometric correspondence on a synthetic sphere of known geometry."""
