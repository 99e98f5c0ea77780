"""Measure a network by one evaluation, and compare results."""

import contextlib
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from selfpatch.api.dry_run import DryRun, evaluation_report
from selfpatch.api.encoder import Network, open_network_or_baseline, without_values
from selfpatch.config.schema import override
from selfpatch.core import distributed
from selfpatch.core.atomic_io import make_folder
from selfpatch.core.dry_run import dry_run as dry_running
from selfpatch.core.lock import locked_by_main
from selfpatch.core.machine import device_name, precision_warning
from selfpatch.core.types import Encoder
from selfpatch.evaluation import registry
from selfpatch.evaluation.batches import capped_batch_note
from selfpatch.evaluation.compare import compare
from selfpatch.evaluation.config import EvaluationConfig, preset_tables
from selfpatch.evaluation.degenerate import collecting_degenerate
from selfpatch.evaluation.result import Output, Progress, Provenance, Result, silent
from selfpatch.evaluation.workload import DryRunEnds
from selfpatch.models.features import evaluating
from selfpatch.models.finite_features import requiring_finite_features

__all__ = ["check", "compare", "evaluate", "measure", "presets", "report"]


@overload
def evaluate(
    name: str, weights: Network | None, data: str | Path, config: EvaluationConfig | None = None,
    *, dry_run: Literal[True], **options: Any,
) -> DryRun: ...  # fmt: skip
@overload
def evaluate(
    name: str, weights: Network | None, data: str | Path, config: EvaluationConfig | None = None,
    *, dry_run: Literal[False] = False, **options: Any,
) -> Result: ...  # fmt: skip
def evaluate(
    name: str,
    weights: Network | None,
    data: str | Path,
    config: EvaluationConfig | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> Result | DryRun:
    """Run one evaluation: `evaluate("davis", "runs/photos", "DAVIS", resolution=240)`.

    A function is measured like a network: `evaluate("davis", model.forward_features, "DAVIS", patch_size=14,
    load_options={"prefix_tokens": 1})`.

    Under torchrun the processes share the work and give the result of one; all return it, and the main one reports.

    Args:
        name: name of the evaluation, as in `selfpatch evaluate NAME`.
        weights: weights as `selfpatch.load` takes them, an encoder, a function that makes patch features of normalised
            images, or a baseline of the evaluation, e.g. davis's `baseline:first-mask`. If None, score given results.
        data: the data set, e.g. its folder.
        config: settings of the evaluation; if None, its defaults.
        out: folder for result.json and pictures; if None, nothing is written.
        device: as `selfpatch.load` takes it.
        patch_size: side of a patch in pixels, if `weights` is a function.
        load_options: options of `selfpatch.load`, or of `FunctionEncoder` if `weights` is a function.
        progress: called with a description, the number of steps done and the total.
        dry_run: check everything, read no image and write nothing; weights are read as far as their shapes.
        settings: settings of the evaluation by name; they override `config`.

    Returns:
        The result, or the report of a dry run.

    Raises:
        ValueError: the name or a setting is unknown, or weights or data do not fit.
    """
    config = _config(name, config, settings)
    with dry_running(enabled=dry_run), distributed.process_group(device):
        if out is not None:
            make_folder(out)
        with locked_by_main(out):
            encoder, record = None, None
            if config.needs_encoder:
                encoder, record = open_network_or_baseline(weights, device, patch_size, load_options)
            if dry_run:
                return report(name, encoder, record, data, config, device=device)
            return measure(name, encoder, record, data, config, out=out, progress=progress)


def report(
    name: str,
    encoder: Encoder | None,
    record: Provenance | None,
    data: str | Path,
    config: EvaluationConfig | None = None,
    *,
    device: str = "auto",
    **settings: Any,
) -> DryRun:
    """Return the report of the dry run of one evaluation of an open encoder, which `measure` would run.

    Raises:
        ValueError: the evaluation would be refused.
    """
    encoder, used = None if encoder is None else without_values(encoder), distributed.find_device(device)
    with dry_running():
        try:
            measure(name, encoder, record, data, config, **settings)
        except DryRunEnds as ready:
            if encoder is not None and not isinstance(encoder, nn.Module):
                encoder.device = used  # type: ignore[misc]
            with evaluating(encoder) if encoder is not None else contextlib.nullcontext():
                return evaluation_report(f"evaluate {name}", encoder, ready.workload, used)
    raise AssertionError(f"{name} did not call Output.announce before its first image")


def measure(
    name: str,
    encoder: Encoder | None,
    record: Provenance | None,
    data: str | Path,
    config: EvaluationConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Run one evaluation of an open encoder as `evaluate` does.

    The result records the device, the seconds and what was degenerate in the input. `record` names the encoder's
    source. The encoder is None if ready-made results are scored or `record` names a baseline. The folder `out` exists.
    All processes of a group call this together.

    Raises:
        ValueError: the name or a setting is unknown, or data do not fit.
    """
    started = time.perf_counter()
    source = record.source if record is not None else f"the {type(encoder).__name__}"
    with contextlib.ExitStack() as running:
        if encoder is not None:
            running.enter_context(evaluating(encoder))
            running.enter_context(requiring_finite_features(source))
        config = _config(name, config, settings)
        if encoder is not None:
            warning = precision_warning(getattr(config, "precision", "float32"), encoder.device)
            if warning is not None and distributed.is_main_process():
                warnings.warn(warning, stacklevel=2)
        if encoder is None and config.needs_encoder and (record is None or record.source not in config.baselines):
            named = "no weights" if record is None else source
            raise ValueError(f"{name} measures a network, but {named} was named; name e.g. a run or timm:NAME")
        reported = progress if progress is not None and distributed.is_main_process() else silent
        output = Output(None if out is None else Path(out), reported)
        with collecting_degenerate() as collector:
            result = registry.load_evaluation(name)(encoder, data, config, output)  # type: ignore[arg-type]
    costs = {"seconds": time.perf_counter() - started, **result.costs}
    notes = [*result.notes, *capped_batch_note(config, result.settings)]
    result = replace(result, costs=costs, notes=notes, degenerate=[*result.degenerate, *collector.gathered()])
    if encoder is not None and config.needs_encoder:
        processes = "" if distributed.world_size() == 1 else f"{distributed.world_size()} x "
        result = replace(result, weights=record, device=processes + device_name(encoder.device))
    if out is not None and distributed.is_main_process():
        result.save(Path(out) / "result.json")
    return result


def check(name: str, encoder: Encoder | None, record: Provenance | None, data: str | Path, **settings: Any) -> None:
    """Check an evaluation as far as that needs no image, as a dry run does.

    Arguments are those of `measure`; the encoder has no values, see `without_values`.

    Raises:
        ValueError: the evaluation would be refused.
    """
    with dry_running(), contextlib.suppress(DryRunEnds):
        measure(name, encoder, record, data, **settings)


def presets(name: str) -> str:
    """Return how the presets of an evaluation differ, as a table for each of its methods that has any."""
    return preset_tables(registry.find_config(name), name)


def _config(name: str, config: EvaluationConfig | None, settings: Mapping[str, Any]) -> EvaluationConfig:
    kind = registry.find_config(name)
    if config is None:
        return kind.from_settings(settings, name)
    kinds = [kind] if kind.variants is None else [kind, *kind.variants[1].values()]
    if not isinstance(config, tuple(kinds)):
        raise ValueError(f"config is a {type(config).__name__}; {name} takes a {kind.__name__}")
    if "preset" in settings and settings["preset"] != getattr(config, "preset", None):
        raise ValueError(
            f"{name}.preset is {settings['preset']!r}, which decides other settings, but config decides them too; name "
            "the preset in config, or leave config out"
        )
    return override(config, settings, name)
