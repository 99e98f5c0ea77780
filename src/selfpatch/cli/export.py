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

    push_to_hub: Name | None = None
    """Repository OWNER/NAME of the Hugging Face Hub to send the folder to, with a model card made from the run. It is
    made if it does not exist. Log in with `hf auth login` first, or set HF_TOKEN."""
    private: bool = False
    """Let only its owner see the repository, if it is made (with --push-to-hub only)."""
    license: Name | None = None
    """License that the model card states, e.g. apache-2.0 (with --push-to-hub only)."""
    dry_run: bool = False
    """Write into a temporary folder, check it, show its files and the model card, and remove it. Nothing is sent."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ExportOptions, "export", arguments)
    weights = options.named_weights()
    from selfpatch.api.export import export

    names = ("size", "debias", "push_to_hub", "private", "license")
    how = {name: getattr(options, name) for name in names} | plain(options.load)
    if options.dry_run:
        print(visible(str(export(weights, options.to, options.out, dry_run=True, **how)), keep="\n"))
        return 0
    files = export(weights, options.to, options.out, **how)
    readme = visible(files[-1].read_text(encoding="utf-8"), keep="\n")
    print(*(visible(str(file)) for file in files), readme, sep="\n", end="")
    return 0
