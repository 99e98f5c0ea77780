"""Command line: one module for each command, which parses options, calls the Python function and prints."""
