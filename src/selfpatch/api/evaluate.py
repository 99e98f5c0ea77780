"""Measuring networks: which one is meant, one evaluation of it, several results side by side."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.read import read_weights
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.machine import device_name
from selfpatch.core.types import Encoder
from selfpatch.evaluation import registry as evaluations
from selfpatch.evaluation.baselines import MeanColour, RawPatch
from selfpatch.evaluation.compare import compare
from selfpatch.evaluation.config import EvaluationConfig
from selfpatch.evaluation.encoders import FunctionEncoder
from selfpatch.evaluation.presets import describe_presets
from selfpatch.evaluation.registry import Evaluation
from selfpatch.evaluation.result import Provenance, Result, network_sha256
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.features import evaluating
from selfpatch.training.factory import (
    EVALUATIONS,
    find,
    make_student_teacher,
)
from selfpatch.training.online_eval import teacher_encoder

__all__ = ["compare", "evaluate", "load", "make_folder", "measure", "open_encoder", "presets", "untrained_encoder"]


console = Console()


def untrained_encoder(config: RunConfig, shape: AnyBackboneConfig) -> BranchEncoder:
    """The network of a run, freshly initialised, whatever weights it began from: they may have gone since."""
    student_teacher, _ = make_student_teacher(replace(config, init=None), shape)
    return teacher_encoder(student_teacher).eval()


BASELINES = {"mean-colour": MeanColour, "raw-patch": RawPatch}


def load(weights: str, *, device: str = "auto", **options: Any) -> Encoder:
    """A trained network from anywhere: `encoder.patches(images) -> [B, D, h, w]`, `encoder.image(images) -> [B, D]`.

    Args:
        weights: a run directory, a released checkpoint, a .safetensors file, or timm:NAME. To
            compare with: `untrained:RUN`, the network of a run freshly initialised, and `baseline:mean-colour:P` or
            `baseline:raw-patch:P`, which encode a patch of P pixels without any network.
        options: fields of `LoadConfig`, and `normed_patches`, as `load_encoder` takes it.

    Raises:
        ValueError: there are no such weights, or they do not fit.
    """
    return _load(weights, device, options)[0]


def _load(weights: str, device: str, options: Mapping[str, Any]) -> tuple[Encoder, Provenance]:
    """The encoder, and the record of what it is."""
    kind, _, rest = weights.partition(":")
    if kind == "baseline":
        name, _, patch = rest.partition(":")
        if name not in BASELINES or not patch.isdecimal():
            known = ", ".join(f"baseline:{known}:P" for known in BASELINES)
            raise ValueError(f"{weights!r} is no baseline; use one of {known}, P being the side of a patch in pixels")
        baseline = BASELINES[name](int(patch))
        baseline.device = distributed.start(device)
        return baseline, Provenance(weights)
    on = distributed.start(device)
    if kind == "untrained":
        run = RunDirectory.open(rest)
        config = RunConfig.from_saved(run.settings, run.settings_file)
        untrained = untrained_encoder(config, read_weights(rest).config)
        return untrained.to(on), Provenance(weights, network_sha256(untrained))
    fields = dict(options)
    normed = fields.pop("normed_patches", True)
    encoder, report = load_encoder(weights, LoadConfig(**fields), normed_patches=normed)
    console.print(str(report), highlight=False, soft_wrap=True)
    return encoder.to(on), Provenance(report.source, report.sha256 or network_sha256(encoder))


def open_encoder(
    weights: str | Encoder | Callable[[Tensor], Any],
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Mapping[str, Any] | None = None,
) -> tuple[Encoder, Provenance | None]:
    """The encoder, and the record of what it is, where that is known; arguments as for `evaluate`.

    Raises:
        ValueError: there are no such weights, or a patch size is missing or is none to choose.
    """
    options = load_options or {}
    if callable(weights) and not isinstance(weights, Encoder):
        if patch_size is None:
            raise ValueError("the network is a function of images; say how large its patches are, e.g. patch_size=16")
        on = None if device == "auto" else distributed.start(device)
        return FunctionEncoder(weights, patch_size, device=on, **options), None
    if patch_size is not None:
        raise ValueError(f"patch_size is {patch_size}, but only a function of images needs one; leave it out")
    return _load(weights, device, options) if isinstance(weights, str) else (weights, None)


def open_network_or_baseline(
    weights: str | Encoder | Callable[[Tensor], Any] | None,
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
    if isinstance(weights, str) and weights in evaluations.BASELINES:
        return None, Provenance(weights)
    return open_encoder(weights, device, patch_size, load_options)


def evaluate(
    name: str,
    weights: str | Encoder | Callable[[Tensor], Any] | None,
    data: str | Path,
    *,
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Result:
    """Runs one evaluation.

    Args:
        name: one of `build.EVALUATIONS`.
        weights: as `load` takes them, an encoder, or a function that makes patch features of normalised images, as
            `evaluation.functions.FunctionEncoder` says: `evaluate("davis", model.forward_features, "DAVIS",
            patch_size=14, load_options={"prefix_tokens": 1})`; or a baseline of the evaluation's own, e.g.
            `baseline:first-mask` of davis. None where ready-made results are scored.
        patch_size: side of a patch in pixels, where weights are a function.
        load_options: as `load` takes them; for a function, as `FunctionEncoder` does.
        settings: of the evaluation's own `evaluate`.

    Raises:
        ValueError: an unknown name, weights or data that do not fit.
    """
    known = protocol(name)  # before weights are read
    if settings.get("out") is not None:
        make_folder(settings["out"])
    if isinstance(known, Evaluation) and not _config(known, name, settings).needs_encoder:
        return measure(name, None, None, data, **settings)
    encoder, record = open_network_or_baseline(weights, device, patch_size, load_options)
    return measure(name, encoder, record, data, **settings)


def _config(evaluation: Evaluation, name: str, settings: Mapping[str, Any]) -> EvaluationConfig:
    values = {key: value for key, value in settings.items() if key not in ("out", "progress")}
    return evaluation.config.from_settings(values, name)


def measure(name: str, encoder: Encoder | None, record: Provenance | None, data: str | Path, **settings: Any) -> Result:
    """Run one evaluation of an open encoder; the result records the device and the seconds.

    Args:
        name: name of the evaluation.
        encoder: network to measure; None if ready-made results are scored or `record` names a baseline.
        record: source of the encoder.
        data: data set.
        settings: settings of the evaluation, and `out` and `progress` as its function takes them.

    Raises:
        ValueError: an unknown name or setting, or data that do not fit.
    """
    known = protocol(name)
    out, progress = settings.get("out"), settings.get("progress")
    started = time.perf_counter()
    with evaluating(encoder) if encoder is not None else contextlib.nullcontext():
        if isinstance(known, Evaluation):
            config = _config(known, name, settings)
            _check_encoder(name, encoder, record, config)
            folder = None if out is None else Path(out)
            result = known.load()(encoder, data, config, out=folder, weights=record, progress=progress)  # type: ignore[arg-type]
        else:
            result = known(encoder, data, weights=record, **settings)
    costs = {"seconds": time.perf_counter() - started, **result.costs}
    result = replace(result, device=None if encoder is None else device_name(encoder.device), costs=costs)
    if out is not None:
        result.save(Path(out) / "result.json")
    return result


def _check_encoder(name: str, encoder: Encoder | None, record: Provenance | None, config: EvaluationConfig) -> None:
    if encoder is None and config.needs_encoder and (record is None or record.source not in config.baselines):
        source = "no weights" if record is None else record.source
        raise ValueError(f"{name} measures a network, but {source} was named; name a run, a checkpoint or timm:NAME")


def presets(name: str) -> str:
    """How the presets of an evaluation differ, as a table for each of its methods that has any.

    Raises:
        ValueError: there is no such evaluation, or it has no presets.
    """
    known = protocol(name)
    if isinstance(known, Evaluation):
        return describe_presets_of(known.config, name)
    module = importlib.import_module(EVALUATIONS[name].partition(":")[0])
    tables: Mapping[str, Any] = getattr(module, "PRESETS", {})
    if not tables:
        raise ValueError(f"{name} has no presets; its defaults are the published protocol")
    if isinstance(next(iter(tables.values())), Mapping):
        return "\n\n".join(f"{method}\n{describe_presets(of)}" for method, of in tables.items())
    return describe_presets(tables)


def protocol(name: str) -> Any:
    """The row of an evaluation, or, until it has one, its function."""
    return evaluations.EVALUATIONS[name] if name in evaluations.EVALUATIONS else find(EVALUATIONS, name, "evaluation")


def describe_presets_of(config: type[EvaluationConfig], name: str) -> str:
    """Return how the presets of an evaluation, or of each of its variants, differ.

    Raises:
        ValueError: it has no presets.
    """
    variants = {"": config} if config.variants is None else config.variants[1]
    tables = [
        f"{variant}\n{describe_presets({p: cls.from_settings({'preset': p}) for p in cls.presets})}".strip()
        for variant, cls in variants.items()
        if cls.presets
    ]
    if not tables:
        raise ValueError(f"{name} has no presets; its defaults are the published protocol")
    return "\n\n".join(tables)


def make_folder(out: str | Path) -> None:
    """Before the work, so that none is lost."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}); name another folder with --out") from None
