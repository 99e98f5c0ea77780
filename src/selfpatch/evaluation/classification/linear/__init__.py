"""Linear classification of frozen features: how much of the classes a linear layer reads out of the image tokens."""
