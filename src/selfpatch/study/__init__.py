"""Studies: a grid of recipes over seeds, trained, measured and laid side by side, from one file."""

from selfpatch.study.running import run_study

__all__ = ["run_study"]
