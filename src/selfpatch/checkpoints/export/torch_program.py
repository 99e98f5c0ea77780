"""Export as a program of torch.export, which torch runs and compiles without this package.

The graph maps normalised images [B, C, H, W] to image features [B, D] and patch features [B, D, h, w].
"""

from pathlib import Path

import torch
from torch import Tensor

from selfpatch.checkpoints.export.formats import ExportSummary, OnHub
from selfpatch.checkpoints.export.graph import graph_of
from selfpatch.config.schema import Size
from selfpatch.models.encoder import BranchEncoder, Features

LIBRARIES = ()
FILE = "model.pt2"
USAGE = f"""network = torch.export.load("{{folder}}/{FILE}").module()
image, patches = network(images)"""
ON_HUB = OnHub(
    "pytorch",
    f"""import torch
from huggingface_hub import hf_hub_download

network = torch.export.load(hf_hub_download("{{repository}}", "{FILE}")).module()
image, patches = network(images)""",
)


def write(encoder: BranchEncoder, folder: Path, size: Size | None, *, debias: int = 0) -> ExportSummary:
    """Write the program, whose patch features lack `debias` directions of positions.

    Raises:
        ValueError: as `graph_of`.
    """
    graph = graph_of(encoder, size, debias)
    with torch.no_grad():
        program = torch.export.export(graph.module, (graph.images,), dynamic_shapes=graph.dynamic_shapes)
    torch.export.save(program, folder / FILE, extra_files=graph.metadata)
    return ExportSummary(USAGE, graph.sizes, (graph.note,))


def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] of the loaded program."""
    image, patches = torch.export.load(folder / FILE).module()(images)
    return Features(image, patches)
