"""Loggers of the numbers of a run."""
