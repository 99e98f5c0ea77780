"""Semantic segmentation with patch features: k-NN, linear, logistic, k-means and trained decoders."""
