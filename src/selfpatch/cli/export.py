"""`selfpatch export`: write weights for other libraries."""

from typing import Literal

from pydantic import NonNegativeInt

from selfpatch.cli.parsing import WeightsOptions, read_options
from selfpatch.config.schema import Name, Size, plain, settings
from selfpatch.core.text import visible


@settings
class ExportOptions(WeightsOptions):
    """Write a network for timm, transformers (hf), onnxruntime or torch.export, or as one safetensors file.

    The files are loaded by that library, and their features compared with the network's.
    """

    to: Literal["timm", "safetensors", "hf", "onnx", "torch"]
    """Format; torch is a program of torch.export (.pt2)."""
    out: Name
    """Folder for the files, new or empty."""
    size: Size | None = None
    """Side of the images in pixels, or height and width (onnx and torch only); defaults to any size, or to
    the one that a Swin's windows fit."""
    debias: NonNegativeInt = 0
    """Number of directions to remove from patch features, those that tell the position of a patch (INSID3, arXiv
    2603.28480); only with --to onnx or torch, and --size. 0 removes none."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ExportOptions, "export", arguments)
    weights = options.named_weights()
    from selfpatch.api.export import export

    files = export(weights, options.to, options.out, size=options.size, debias=options.debias, **plain(options.load))
    readme = visible(files[-1].read_text(encoding="utf-8"), keep="\n")
    print(*(visible(str(file)) for file in files), readme, sep="\n", end="")
    return 0
