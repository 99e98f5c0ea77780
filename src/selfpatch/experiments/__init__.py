"""Studies: a grid of recipes over seeds, trained, measured and laid side by side, from one file."""
