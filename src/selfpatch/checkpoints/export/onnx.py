"""Export as ONNX: a graph of normalised images [B, C, H, W] -> image features [B, D], patch features [B, D, h, w]."""

from pathlib import Path

import torch
from torch import Tensor

from selfpatch.checkpoints.export.formats import ExportSummary, OnHub
from selfpatch.checkpoints.export.graph import graph_of
from selfpatch.config.schema import Size
from selfpatch.models.encoder import BranchEncoder, Features

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"
USAGE = f"""session = onnxruntime.InferenceSession("{{folder}}/{FILE}")
image, patches = session.run(None, {{{{"images": images}}}})"""
ON_HUB = OnHub(
    "onnx",
    f"""import onnxruntime
from huggingface_hub import hf_hub_download

session = onnxruntime.InferenceSession(hf_hub_download("{{repository}}", "{FILE}"))
image, patches = session.run(None, {{{{"images": images}}}})""",
)


def write(encoder: BranchEncoder, folder: Path, size: Size | None, *, debias: int = 0) -> ExportSummary:
    """Write the graph, whose patch features lack `debias` directions of positions.

    Raises:
        ValueError: as `graph_of`.
    """
    graph = graph_of(encoder, size, debias)
    program = torch.onnx.export(
        graph.module,
        (graph.images,),
        input_names=["images"],
        output_names=["image", "patches"],
        dynamic_shapes=graph.dynamic_shapes,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(graph.metadata)
    program.save(folder / FILE)
    return ExportSummary(USAGE, graph.sizes, (graph.note,))


def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    image, patches = session.run(None, {"images": images.numpy()})
    return Features(torch.from_numpy(image), torch.from_numpy(patches))
