"""Image sources: folders, lists and tar shards, and the index of the images in them."""
