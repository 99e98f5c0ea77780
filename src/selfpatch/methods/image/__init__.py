"""Image-level methods, one per file."""
