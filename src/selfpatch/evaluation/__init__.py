"""Evaluations: each file, or folder, is one protocol with `evaluate(encoder, data, ...) -> Result`."""
