"""A page that compares patches of images by their features, in a browser and without a server."""
