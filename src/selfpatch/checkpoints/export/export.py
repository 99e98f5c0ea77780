"""Export of trained networks, each loaded and checked in the other library before its folder appears.

A new format is a module with `LIBRARIES`, `write` and `read_features`, and its row in `FORMATS`.
"""

import copy
import errno
import importlib.util
import itertools
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from selfpatch.checkpoints.export import huggingface, onnx, safetensors, timm, torch_program
from selfpatch.checkpoints.export.formats import ExportSummary
from selfpatch.checkpoints.export.graph import patches_without_positions
from selfpatch.config.schema import Size, size_text
from selfpatch.core.atomic_io import clear_error, write_atomically
from selfpatch.core.text import counted, visible
from selfpatch.models.encoder import BranchEncoder, Features, image_token
from selfpatch.models.layers.lora import merge_adapters

FORMATS: dict[str, ModuleType] = {
    "timm": timm, "safetensors": safetensors, "hf": huggingface, "onnx": onnx, "torch": torch_program,
}  # fmt: skip
GRAPHS = ("onnx", "torch")
"""Formats that hold all that is computed, for any size of images or for a fixed one."""

POOL_IS_LEFT_OUT = (
    "Patch features are the trained network's. Its image feature was a pool's, which is not in this folder: "
    "exports to onnx, torch and safetensors keep it."
)

TOLERANCE = 1e-4
"""Largest difference of a feature, relative to the largest feature, that passes as rounding."""


def export(
    encoder: BranchEncoder,
    to: str,
    out: str | Path,
    *,
    size: Size | None = None,
    debias: int = 0,
    card: Callable[[tuple[str, ...]], str] | None = None,
) -> list[Path]:
    """Write a network as a folder for another library, load it there and compare the features of random images.

    Patch features are those after the trunk's final norm, if it has one. The folder appears once it has passed.

    Args:
        encoder: the network.
        to: one of `FORMATS`.
        out: a folder that is new or empty.
        size: fixed side of the graph's input images in pixels, or (height, width) (onnx and torch only); if
            None, any size that the family can take.
        debias: number of directions of positions to remove from patch features (onnx and torch of a fixed size only).
        card: makes the text of README.md, the model card, of sentences on images and caveats; if None, there is none.

    Returns:
        The files; the last one, README.txt, explains how to load the others.

    Raises:
        ValueError: the format lacks the architecture, a library is missing, the folder is not empty, or outputs differ.
    """
    check_request(to, Path(out), size, debias)
    encoder = copy.deepcopy(encoder).cpu().float().eval()
    merge_adapters(encoder)
    module, channels = FORMATS[to], encoder.backbone.config.in_channels
    with _appearing_folder(Path(out)) as folder:
        options = {"debias": debias} if debias else {}
        summary: ExportSummary = module.write(encoder, folder, size, **options)
        for batch, (height, width) in zip(itertools.cycle((2, 1, 3)), summary.sizes, strict=False):
            images = torch.randn(batch, channels, height, width, generator=torch.manual_seed(0))
            exported = module.read_features(folder, images)
            _compare(exported, encoder, images, to, with_image=summary.has_image, debias=debias)
        about = _about(encoder, summary)
        write_atomically(folder / "README.txt", _readme(encoder, to, summary.usage, about, Path(out)))
        if card is not None:
            write_atomically(folder / "README.md", card(about))
    return sorted(Path(out).iterdir(), key=lambda path: (path.name == "README.txt", path.name))


def check_request(to: str, out: Path, size: Size | None, debias: int) -> None:
    """Raise ValueError if an export to a folder cannot be made, as far as that is known before the network is read."""
    if to not in FORMATS:
        raise ValueError(f"there is no export to {to!r}; use one of {', '.join(FORMATS)}")
    if size is not None and to not in GRAPHS:
        raise ValueError(f"size is {size_text(size)}, but an export to {to} takes images of many sizes; leave it out")
    if debias and to not in GRAPHS:
        raise ValueError(
            f"debias is {debias}, but an export to {to} holds the network alone, not what follows it; use --to onnx "
            "or torch with --size, or remove positions where features are read, as `selfpatch evaluate --debias` does"
        )
    if debias and size is None:
        raise ValueError(f"debias is {debias}, but positions differ between sizes of images; give their --size too")
    missing = [name for name in FORMATS[to].LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"an export to {to} needs {', '.join(missing)}; install with: pip install 'selfpatch[export]'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder; name another one with --out, or remove it")


@contextmanager
def _appearing_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `out` at the end; after an error nothing is left of it."""
    filling = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with clear_error(out):
        filling.mkdir(parents=True)
        try:
            yield filling
            _rename(filling, out)
        finally:
            shutil.rmtree(filling, ignore_errors=True)


def _rename(filling: Path, out: Path) -> None:
    try:
        os.replace(filling, out)  # an empty folder may be there already
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ValueError(f"another process filled {out} meanwhile; name another folder with --out") from None


@torch.no_grad()
def _compare(
    exported: Features, encoder: BranchEncoder, images: Tensor, to: str, *, with_image: bool, debias: int
) -> None:
    """Raise ValueError if the other library's features of normalised images differ from the trained network's."""
    tokens = encoder.backbone(images)
    patches = patches_without_positions(encoder, debias)(images) if debias else tokens.patches.movedim(-1, 1)
    pairs = {"patch": (patches, exported.patches)}
    if with_image:
        pairs["image"] = image_token(tokens, encoder.pool), exported.cls
    others = " or ".join(name for name in (*GRAPHS, "safetensors") if name != to)
    advice = f"it does not have exactly this network, and nothing was written; use --to {others}"
    for kind, (expected, found) in pairs.items():
        if expected.shape != found.shape:
            raise ValueError(f"{to} gives {kind} features {list(found.shape)}, not {list(expected.shape)}; {advice}")
        difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not difference <= TOLERANCE:
            raise ValueError(f"{to} gives {kind} features that differ by {difference:.1e} of the largest; {advice}")


def _about(encoder: BranchEncoder, summary: ExportSummary) -> tuple[str, ...]:
    """Return sentences on the images that the exported network takes, how it was checked, and what it lacks."""
    config = encoder.backbone.config
    kind = "RGB in [0, 1]" if config.in_channels == 3 else f"of {counted(config.in_channels, 'channel')}"
    sizes = " and ".join(f"{height} x {width}" for height, width in summary.sizes)
    pool = [] if encoder.pool is None or summary.has_image else [POOL_IS_LEFT_OUT]
    return (
        f"Images are {kind}, less the mean {list(config.mean)}, over the standard deviation {list(config.std)}.",
        f"Its features were compared with the trained network's on images of {sizes} pixels.",
        *pool,
        *summary.notes,
    )


def _readme(encoder: BranchEncoder, to: str, usage: str, about: tuple[str, ...], out: Path) -> str:
    values = {name: value for name, value in encoder.backbone.config.to_dict().items() if value is not None}
    described = ", ".join(f"{name} {value}" for name, value in values.items() if name not in ("mean", "std"))
    load = textwrap.indent(usage.format(folder=visible(str(out))), "    ")
    return "\n".join([f"Network: {described}.", "", f"Load it ({to}):", load, "", *about]) + "\n"
