"""Image-level methods and patch-level objectives: which views, which tokens, which loss."""
