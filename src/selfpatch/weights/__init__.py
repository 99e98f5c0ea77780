"""Weights in and out: released checkpoints, run directories, safetensors and timm, with a strict report.

`reading` finds the tensors, `formats` knows what each format calls them, `architecture` tells what network they belong
to, and `loading` puts them there.
"""

from selfpatch.weights.architecture import infer_shape
from selfpatch.weights.exporting import export_state
from selfpatch.weights.formats import to_branch_names
from selfpatch.weights.loading import LoadReport, load_backbone, load_encoder, load_strictly
from selfpatch.weights.reading import TIMM, Weights, file_hash, read_weights

__all__ = [
    "TIMM",
    "LoadReport",
    "Weights",
    "export_state",
    "file_hash",
    "infer_shape",
    "load_backbone",
    "load_encoder",
    "load_strictly",
    "read_weights",
    "to_branch_names",
]
