"""Data pipeline from image files to batches of crops; never imports a network."""
