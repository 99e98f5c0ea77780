"""Open a trained network, an untrained one or a baseline as an encoder."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.folders import is_run
from selfpatch.checkpoints.load import initialised_encoder, load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.console import console
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.text import shown
from selfpatch.core.types import Encoder
from selfpatch.evaluation import registry
from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour, PixelEncoder, RawPatch
from selfpatch.evaluation.identity import network_sha256
from selfpatch.evaluation.result import Provenance
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.online_eval import teacher_encoder

Network = str | Path | Encoder | Callable[[Tensor], Any]
"""Name of weights, an encoder, or a function that makes patch features of normalised images."""

BASELINES = {"mean-colour": MeanColour, "raw-patch": RawPatch}
"""Encoders without a network by name, made for a patch size."""


def load(
    weights: str | Path, *, device: str = "auto", normed_patches: bool = True, **options: Any
) -> BranchEncoder | PixelEncoder:
    """Load a network: `cls, patches = encoder(encoder.transform(images, size=224))`, [B, D] and [B, D, h, w].

    The encoder is an `nn.Module` in evaluation mode, whose call has gradients; `encoder.patches(images)` and
    `encoder.image(images)` give one of the features without. `encoder.transform` resizes and normalises PIL images,
    arrays and tensors.

    Args:
        weights: a run directory, a released checkpoint, a .safetensors file, a folder that `selfpatch export`,
            transformers or timm wrote, timm:NAME, or hf:OWNER/NAME. To compare with:
            `untrained:WEIGHTS`, the same network freshly initialised, and `baseline:mean-colour:P` or
            `baseline:raw-patch:P`, which encode a patch of P pixels without any network.
        device: `auto` (CUDA, then MPS, then CPU), or a torch device.
        normed_patches: give patch features after the trunk's final norm (DINO), else the last block's output.
        options: fields of `checkpoints.config.LoadConfig`, e.g. `side="student"`.

    Raises:
        ValueError: there are no such weights, or they do not fit.
    """
    encoder, _ = open_encoder(weights, device, load_options={"normed_patches": normed_patches, **options})
    return cast("BranchEncoder | PixelEncoder", encoder)


def open_encoder(
    weights: Network, device: str = "auto", patch_size: int | None = None, load_options: Mapping[str, Any] | None = None
) -> tuple[Encoder, Provenance | None]:
    """Return the encoder and the record of its source, if that is known.

    A function needs a `patch_size` in pixels, and takes options of `FunctionEncoder` instead of `load`.

    Raises:
        ValueError: these are no weights, there are none of the name, or a patch size is missing or given without need.
    """
    options = dict(load_options or {})
    if callable(weights) and not isinstance(weights, Encoder):
        if patch_size is None and hasattr(weights, "forward_features"):
            raise ValueError(
                f"weights are a {type(weights).__name__}, a network of another library; save its state dict and name "
                "the file, or give its forward_features with patch_size=16, load_options={'prefix_tokens': 1}"
            )
        if patch_size is None:
            raise ValueError("the network is a function of images; say how large its patches are, e.g. patch_size=16")
        function_device = None if device == "auto" else distributed.start(device)
        return FunctionEncoder(weights, patch_size, device=function_device, **options), None
    if patch_size is not None:
        raise ValueError(f"patch_size is {patch_size}, but only a function of images needs one; leave it out")
    if isinstance(weights, Encoder):
        return weights, None
    if not isinstance(weights, str | Path) or not str(weights):
        kind = (
            shown(weights) if isinstance(weights, int | float | str | bytes | None) else f"a {type(weights).__name__}"
        )
        raise ValueError(
            f"weights are {kind}; name a run directory, a checkpoint or timm:NAME, or give an encoder or a "
            "function of images"
        )
    weights = str(weights)
    normed_patches = options.pop("normed_patches", True)
    load_config = LoadConfig(**options)
    kind, _, name = weights.partition(":")
    if kind == "baseline":
        return _baseline(name, device), Provenance(weights)
    network_device = distributed.start(device)
    if kind == "untrained":
        untrained = _untrained(name, load_config)
        untrained.normed_patches = normed_patches
        return _on_device(untrained, network_device), Provenance(weights, network_sha256(untrained))
    encoder, report = load_encoder(weights, load_config, normed_patches=normed_patches)
    if distributed.is_main_process():
        console.say(str(report))
    return _on_device(encoder, network_device), Provenance(report.source, report.sha256 or network_sha256(encoder))


def _untrained(source: str, config: LoadConfig) -> BranchEncoder:
    """Return the network of a run, or of other weights, as it was before training."""
    weights = read_weights(source, config)
    if not is_run(Path(source)):
        return initialised_encoder(weights)
    run = RunDirectory.open(source)
    return untrained_encoder(RunConfig.from_saved(run.settings, run.settings_file), weights.config)


def _on_device(encoder: BranchEncoder, device: torch.device) -> BranchEncoder:
    """Return the encoder on its device; in a dry run it has no values and stays on the meta device."""
    return encoder if in_dry_run() else encoder.to(device)


def without_values(encoder: Encoder) -> Encoder:
    """Return a copy of an encoder on the meta device, where a dry run builds what is trained on top of it."""
    if isinstance(encoder, nn.Module):
        known: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in encoder.parameters()}
        known |= {id(buffer): buffer.to("meta") for buffer in encoder.buffers()}
        return copy.deepcopy(encoder, known)  # which takes what it knows, so that no values are copied
    encoder = copy.copy(encoder)
    with contextlib.suppress(AttributeError):  # a property that cannot be set
        encoder.device = torch.device("meta")  # type: ignore[misc]
    return encoder


def _baseline(name: str, device: str) -> Encoder:
    """Return the baseline `NAME:P`, P being the side of a patch in pixels."""
    kind, _, patch_size = name.partition(":")
    if kind not in BASELINES or not patch_size.isdecimal():
        known = ", ".join(f"baseline:{known}:P" for known in BASELINES)
        raise ValueError(f"'baseline:{name}' is no baseline; use one of {known}, P being the side of a patch in pixels")
    baseline = BASELINES[kind](int(patch_size))
    baseline.device = distributed.start(device)
    return baseline


def open_network_or_baseline(
    weights: Network | None,
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Mapping[str, Any] | None = None,
) -> tuple[Encoder | None, Provenance | None]:
    """Return what `open_encoder` does, but None for the encoder if `weights` name a baseline that needs none.

    Raises:
        ValueError: no weights are named, or as for `open_encoder`.
    """
    if weights is None:
        raise ValueError("no weights were named; name a run directory, a checkpoint or timm:NAME")
    if isinstance(weights, str) and weights in registry.BASELINES:
        return None, Provenance(weights)
    return open_encoder(weights, device, patch_size, load_options)


def untrained_encoder(config: RunConfig, backbone: AnyBackboneConfig) -> BranchEncoder:
    """Return the freshly initialised network of a run, without the weights of `init` and `teacher` that may be gone."""
    student_teacher, _ = make_student_teacher(replace(config, init=None), backbone, with_anchor=False)
    return teacher_encoder(student_teacher.teacher).eval()
