"""Data types, distributed training, atomic files and other foundations."""
