"""Weights in and out: released checkpoints, run directories, safetensors and timm, with a strict report.

`reading` finds the tensors, `formats` knows what each format calls them, `architecture` tells what network they belong
to, and `loading` puts them there.
"""
