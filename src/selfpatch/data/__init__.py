"""From a folder of images to batches of crops: index, read, draw, render, load. Never imports a network."""
