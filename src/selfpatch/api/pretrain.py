"""Train a network, or continue a run."""

import contextlib
import itertools
import time
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from selfpatch.api.dry_run import DryRun, pretraining_report
from selfpatch.api.encoder import untrained_encoder
from selfpatch.api.first_checks import recipe_for
from selfpatch.api.fit_epochs import fit_epochs
from selfpatch.api.interrupted import Interrupted
from selfpatch.api.restarted import begun_run, resolved_data
from selfpatch.api.run_summary import run_summary
from selfpatch.api.short_runs import fit_schedules
from selfpatch.checkpoints.checkpoint_store import load_checkpoint
from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import COMPOSITION, SAMPLES, RunConfig
from selfpatch.config.signature import signature_with_settings
from selfpatch.core import distributed
from selfpatch.core.console import console
from selfpatch.core.dry_run import dry_run as dry_running
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.machine import autocast_dtype, precision_warning
from selfpatch.core.text import shell
from selfpatch.models.backbones.config import backbone_config_from_dict
from selfpatch.models.branch import Branch
from selfpatch.training import factory
from selfpatch.training.changed_images import changed_images, record_images
from selfpatch.training.checkpointing import first_difference
from selfpatch.training.dataset import TrainingData, check_data, measure_channels, record_data
from selfpatch.training.history import record_end, record_start
from selfpatch.training.loggers.registry import require_loggers
from selfpatch.training.online_eval import teacher_encoder
from selfpatch.training.parallel import whole_teacher
from selfpatch.training.report import measured_table, write_run_report
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import train


@overload
def pretrain(config: RunConfig | None = None, *, dry_run: Literal[False] = False, **settings: Any) -> Path: ...
@overload
def pretrain(config: RunConfig | None = None, *, dry_run: Literal[True], **settings: Any) -> DryRun: ...
def pretrain(config: RunConfig | None = None, *, dry_run: bool = False, **settings: Any) -> Path | DryRun:
    """Pre-train a network: `pretrain(data="photos/", objective="selfpatch", epochs=100, selfpatch={"k": 2})`.

    Args:
        config: settings of the run. If None, from the recipe that `recipe` names or that fits the number of images.
        dry_run: check everything and build the network without values; read no image and write nothing.
        settings: settings by name, sections as mappings; they override `config`. Warm-ups and frozen epochs among them
            stay as long as they are, however short the run.

    Returns:
        The run directory, or the report of a dry run.

    Raises:
        ValueError: settings or data are wrong.
        Interrupted: a signal stopped the run, which can be resumed.
    """
    started = time.monotonic()
    with dry_running(enabled=dry_run):
        if config is None:
            data, recipe = settings.get("data"), settings.get("recipe")
            names = (None if name is None else str(name) for name in (data, recipe))
            config = recipe_for(*names, composed=bool(COMPOSITION & settings.keys()))
        elif settings.get("recipe") not in (None, config.recipe):
            raise ValueError(
                f"recipe is {settings['recipe']!r}, whose settings a run starts from, but config is given in its "
                "place; leave one of them out"
            )
        config = config.override(settings)
        with distributed.process_group(config.device):
            begun = None if in_dry_run() else begun_run(config)
            if begun is not None:
                return _resume(*begun)
            return _pretrain(config, started, named=(settings.get("optimizer") or {}).keys())


pretrain.__signature__ = signature_with_settings(pretrain, RunConfig)  # type: ignore[attr-defined]


def _pretrain(config: RunConfig, started: float, named: Container[str]) -> Path | DryRun:
    device = distributed.start(config.device)
    require_loggers(config.logging)
    data = factory.open_training_data(config)
    statistics = None if in_dry_run() else measure_channels(data, config.channels)
    student_teacher, report = factory.make_student_teacher(config, statistics=statistics)
    # The run records the weight of every loss and the renderer, also where the defaults hold.
    config = factory.with_renderer(replace(config, loss_weights=student_teacher.loss_weights), device)
    # Settings that do not fit together are refused before the run directory is made.
    steps_per_epoch = factory.make_loader(config, student_teacher, data, device).steps_per_epoch
    lines: list[str] = []
    if config.minutes is not None and not in_dry_run():
        with dry_running():  # refuses the folder before anything is measured
            _new_run(config, data)
        config, lines = fit_epochs(config, student_teacher, data, device, started)
    config, notes = fit_schedules(config, named)
    schedule = factory.make_schedule(config, steps_per_epoch)
    run = _new_run(config, data)
    try:
        if distributed.is_main_process():
            lines = [*run_summary(config, data, student_teacher, schedule, device), *lines, *notes]
            console.say(*lines, *([] if report is None else [str(report)]))
        if in_dry_run():
            return pretraining_report(config, run.settings, data, student_teacher, schedule, device)
        return _train(run, config, data, student_teacher, device)
    except BaseException:
        # A run without a checkpoint would block the next try.
        if distributed.is_main_process() and not in_dry_run() and not run.can_be_resumed:
            run.discard()
        raise


def resume(
    path: str | Path,
    *,
    device: str | None = None,
    workers: int | None = None,
    parallel: str | None = None,
    refuse_changed: bool = False,
) -> Path:
    """Continue a run exactly where its newest checkpoint is.

    Args:
        path: the run directory, which is returned.
        device: device to train on; defaults to the run's.
        workers: number of loader processes; defaults to the run's.
        parallel: how several processes share the network, `ddp` or `fsdp`; defaults to the run's. Their number may
            differ from before, if it divides the batch.
        refuse_changed: refuse to go on if images have changed since the run began (`loader.fingerprint`); otherwise it
            says so.

    Raises:
        ValueError: there is no run, it has ended and has no checkpoint, images were added or removed, or have changed
            and `refuse_changed` is set.
        Interrupted: a signal stopped the run again.
    """
    run = RunDirectory.open(path)
    config = RunConfig.from_saved(run.settings, run.settings_file)
    given = {"device": device, "parallel": parallel}
    config = config.override({name: value for name, value in given.items() if value is not None})
    config = config.override({} if workers is None else {"loader": {"workers": workers}})
    return _resume(run, config, refuse_changed)


def _resume(run: RunDirectory, config: RunConfig, refuse_changed: bool = False) -> Path:
    with distributed.process_group(config.device):
        started = distributed.start(config.device)
        data = factory.open_training_data(config)
        check_data(run, data)
        if distributed.is_main_process() and (warning := changed_images(run, data.index, refuse=refuse_changed)):
            console.say(f"warning: {warning}")
        student_teacher = _network_of_newest(run, config)
        if student_teacher is None:  # it was killed before the first one
            if run.exported_backbone.is_file():
                raise ValueError(
                    f"{run.path} has ended, but its checkpoints are gone, and it would start again and write over its "
                    f"weights; use {run.exported_backbone}, or train with another --out"
                )
            if distributed.is_main_process():
                console.say(f"warning: {run.path} has no checkpoint; it starts again at step 0")
            statistics = measure_channels(data, config.channels)
            student_teacher, _ = factory.make_student_teacher(config, statistics=statistics)
        return _train(run, config, data, student_teacher, started)


def _network_of_newest(run: RunDirectory, config: RunConfig) -> StudentTeacher | None:
    """Return a new network of the form of the newest checkpoint that is of this run, or None without checkpoints."""
    while (path := run.checkpoints.newest()) is not None:
        state = load_checkpoint(path)
        try:
            student_teacher, _ = factory.make_student_teacher(
                config, backbone_config_from_dict(state["shape"]), checkpoint=state
            )
            if not {"step", "optimizer"} <= state.keys():
                raise ValueError("it holds the network alone")
            if difference := first_difference(student_teacher, state["pretrainer"]):
                raise ValueError(difference)
            return student_teacher
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            run.checkpoints.pass_over(path, str(error))
    return None


def _new_run(config: RunConfig, data: TrainingData) -> RunDirectory:
    """Make the run directory; in a dry run, only check that it can be made."""
    out = distributed.broadcast_from_main(config.out or str(_free_folder(config)))
    source = resolved_data(config.data)
    folder = Path(out).expanduser().resolve()
    if config.data != SAMPLES and Path(source).is_dir() and Path(source) in folder.parents:
        raise ValueError(
            f"--out {out} lies inside the images, {config.data}, and the pictures of the run would count as some of "
            "them; name a folder elsewhere with --out"
        )
    settings = replace(config, data=source, out=str(folder)).to_dict()
    if in_dry_run():
        return RunDirectory.create(out, settings)
    if not distributed.is_main_process():
        distributed.barrier()
        return RunDirectory.open(out)
    run = RunDirectory.create(out, settings)
    try:
        record_data(run, data)
        if config.data != SAMPLES:  # which are made anew where the cache is gone
            record_images(run, data.index, config.loader.fingerprint)
        distributed.barrier()
    except BaseException:
        run.discard()
        raise
    return run


def _free_folder(config: RunConfig) -> Path:
    name = "-".join([Path(config.data).resolve().stem or "images", *config.used])
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def _train(
    run: RunDirectory, config: RunConfig, data: TrainingData, student_teacher: StudentTeacher, device: torch.device
) -> Path:
    warning = precision_warning(config.precision, device)
    if warning is not None and distributed.is_main_process():
        console.say(f"warning: {warning}")
    with run.held() if distributed.is_main_process() else contextlib.nullcontext():
        return _train_held(run, config, data, student_teacher, device)


def _train_held(
    run: RunDirectory, config: RunConfig, data: TrainingData, student_teacher: StudentTeacher, device: torch.device
) -> Path:
    factory.move_to_device(config, student_teacher, device)
    loader = factory.make_loader(config, student_teacher, data, device)
    evaluator = None
    if distributed.is_main_process():  # which alone measures; the images take seconds and hundreds of megabytes
        evaluator = factory.make_online_evaluator(config, student_teacher, data, run.pictures)
        record_start(run.path, device)
        run.note_skipped(evaluator.bad)
        console.say(*(f"warning: {warning}" for warning in evaluator.warnings))
    signal_number = train(
        student_teacher,
        loader,
        factory.make_schedule(config, loader.steps_per_epoch),
        factory.make_optimizer(config, student_teacher),
        run,
        watch=config.watch,
        checkpoint=config.checkpoint,
        logging=config.logging,
        device=device,
        seed=config.seed,
        autocast=autocast_dtype(config.precision, device),
        pretrained=config.init is not None,
        evaluate=evaluator,
    )
    if distributed.is_main_process():
        record_end(run.path)
    if signal_number:
        command = shell("selfpatch", "resume", run.path)
        raise Interrupted(f"stopped and saved; resume with: {command}", signal_number)
    teacher = whole_teacher(student_teacher)
    if teacher is not None and evaluator is not None:
        teacher.eval()
        console.say("drawing patch features before and after training, writing report and weights")
        untrained = untrained_encoder(config, student_teacher.student.backbone.config).to(device)
        pictures = {
            "picture": evaluator.before_and_after(teacher, untrained),
            "explore": evaluator.write_explorer(run.explorer, teacher, untrained),
        }
        _finish(run, data, teacher, ("loss", *student_teacher.loss_weights), pictures, evaluator.bad)
    return run.path


def _finish(
    run: RunDirectory,
    data: TrainingData,
    teacher: Branch,
    losses: Sequence[str],
    pictures: Mapping[str, Path | None],
    bad: Collection[str],
) -> None:
    """Write the report, export the teacher, and print the measurements and the next command; `bad` are unreadable."""
    table = measured_table(run)
    if table is not None:
        console.print(table)
    lines = [f"{kind:<10} {file}" for kind, file in pictures.items() if file is not None]
    report = write_run_report(run, losses=losses)
    # The exported network comes last: a study takes it for the mark of a run that has ended.
    exported = write_safetensors(run.exported_backbone, *export_state(teacher_encoder(teacher)))
    lines += [f"report     {report}", f"weights    {exported}"]
    if (run.path / "skipped.txt").is_file():
        lines.append(f"unreadable images are listed in {run.path / 'skipped.txt'}")
    images = (data.held_out_index.file(int(i)) for i in data.held_out_indices)
    # `show` does not read members of shards
    image = next((file for file in images if isinstance(file, Path) and str(file) not in bad), "IMAGE")
    console.say(*lines, f"next       {shell('selfpatch', 'show', '--weights', run.path, image)}")
