"""Image classification: k-NN, linear probing and fine-tuning."""
