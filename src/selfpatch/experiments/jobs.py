"""Jobs of a study, independent of one another: a network, trained or not, and its evaluations.

Files in the folder of a job::

    run/                    run directory of the training
    evaluations/1-davis/    results, as a suite writes them
    over_time/00000100/     the same for the network after 100 steps
    request.json            settings that the job began with
    done.json               full request, written once the job is finished
"""

import contextlib
import functools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfpatch.api.encoder import open_encoder, untrained_encoder
from selfpatch.api.pretrain import pretrain, resume
from selfpatch.checkpoints.folders import weights_file
from selfpatch.checkpoints.read import file_sha256, read_weights
from selfpatch.checkpoints.read_file import files_of
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.types import Encoder
from selfpatch.evaluation.identity import network_sha256
from selfpatch.evaluation.result import Provenance, Result
from selfpatch.experiments.records import as_json, differences, read_json, write_json
from selfpatch.experiments.spec import AS_IS, UNTRAINED, Arm, Measurement, Study, slug
from selfpatch.experiments.suite import evaluate_entries, request_of, stored_request
from selfpatch.models.encoder import BranchEncoder
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.online_eval import teacher_encoder

MACHINE_SETTINGS = ("data", "out", "device", "packing", "recipe")
"""Settings of a run that may differ when a study continues; the name of a recipe decides nothing by itself."""


@dataclass(frozen=True)
class Job:
    """A network of a study and its evaluations."""

    row: str
    """Line of the table that shows its scores."""
    seed: int | None
    """Seed of the run, or None for a baseline without randomness."""
    folder: str
    """Name of its folder."""
    config: RunConfig | None = None
    """Settings of the network, or None for a baseline without one."""
    baseline: str = ""
    """Baseline or weights, as `selfpatch.load` takes them."""
    trained: bool = False
    """True if the network is trained; otherwise its weights stay random."""
    data: Mapping[str, Path] = field(default_factory=dict)
    """Training data, by the study's names."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the optimizer that the study names; they are in `config`, too."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"


@dataclass(frozen=True)
class WorkerSlot:
    """Device, as torch names it, and CPU threads for one job at a time."""

    device: str
    threads: int


def jobs_of(study: Study, epochs: Mapping[str, float]) -> list[Job]:
    """Return all jobs: the baselines, then all arms seed by seed, so that a stopped study has compared something.

    `epochs` holds the epochs of the arms with equal training time, by name.

    Raises:
        ValueError: two jobs would share a line of the table or a folder, or the epochs of an arm are not possible.
    """
    jobs = []
    for baseline in study.baselines:
        if baseline == AS_IS:
            jobs.append(Job(AS_IS, None, slug(AS_IS), baseline=study.weights[0]))
        elif baseline != UNTRAINED:  # `baseline:mean-colour:8` -> `mean colour, 8 x 8 pixels`
            _, name, patch = baseline.split(":")
            row = f"{name.replace('-', ' ')}, {patch} x {patch} pixels"
            jobs.append(Job(row, None, baseline.replace(":", "-"), baseline=baseline))
    architectures: dict[Any, list[Arm]] = {}  # the arms of each, without regard to pools and heads
    for arm in study.arms if UNTRAINED in study.baselines else ():
        c = arm.config
        architectures.setdefault((c.model, c.patch_size, c.backbone, c.crops.global_size, c.init), []).append(arm)
    for seed in study.seeds:
        for first, *others in architectures.values():
            if any(seed in arm.seeds for arm in (first, *others)):
                row = UNTRAINED if len(architectures) == 1 else f"{UNTRAINED}, as of {first.name}"
                jobs.append(Job(row, seed, f"{UNTRAINED}-{first.slug}-seed{seed}", replace(first.config, seed=seed)))
    for seed in study.seeds:
        for arm in study.arms:
            if seed in arm.seeds:
                config = replace(arm.config, seed=seed, epochs=epochs.get(arm.name, arm.epochs))
                folder = f"{arm.slug}-seed{seed}"
                job = Job(arm.name, seed, folder, config, trained=True, data=arm.pretrain, optimizer=arm.optimizer)
                jobs.append(job)
    folders, names = [job.folder for job in jobs], {arm.name for arm in study.arms}
    for job in jobs:
        if folders.count(job.folder) > 1 or (not job.trained and job.row in names):
            raise ValueError(f"an arm and a baseline are both called {job.row!r}; give the arm another name")
    return jobs


def is_done(job: Job, study: Study, out: Path) -> bool:
    """Return whether the job finished with its present request and all of its results exist."""
    folder = out / job.folder
    columns = {column for m in study.evaluations for column in m.columns.values()}
    found = scores(stored_results(study.evaluations, folder / "evaluations"))
    return _stored(folder / "done.json") == _request(job, study) and columns <= found.keys()


def training_data(data: Mapping[str, Path], out: Path) -> str:
    """Return training data as `pretrain` takes it: its path, or a list of several ones in the folder `out`."""
    sources = [str(source.resolve()) for source in data.values()]
    if len(sources) == 1:
        return sources[0]
    path = out / f"images-{slug(' '.join(data))}.txt"
    write_atomically(path, "".join(f"{source}\n" for source in sources))
    return str(path)


def run_job(job: Job, study: Study, out: Path, slot: WorkerSlot) -> list[str]:
    """Do what is missing of a job in the folder `out` of the study, and return a sentence for each failed evaluation.

    Raises:
        ValueError: the job began with other settings, or settings or data are wrong.
        Interrupted: a signal stopped the training after a checkpoint.
    """
    folder, run = out / job.folder, out / job.folder / "run"
    before, now = _stored(folder / "request.json"), _settings(job)
    if before is None:
        write_json(folder / "request.json", now)
    elif different := differences(before, now):
        raise ValueError(
            f"{folder} was begun with other settings ({different[0]}); name another --out, or remove that folder"
        )
    config = job.config
    if config is None:
        network = open_encoder(job.baseline, slot.device)
    elif job.trained:
        _train(config, training_data(job.data, out), run, slot, job.optimizer)
        network = open_encoder(str(run), slot.device)
    else:
        network = _on_device(_random_encoder(config), UNTRAINED, slot.device)
    failures = _evaluate(study.evaluations, network, folder / "evaluations")
    if config is not None and job.trained and study.over_time:
        network = _on_device(_encoder_before_training(config), config.init or UNTRAINED, slot.device)
        failures += _evaluate(study.over_time, network, folder / "over_time" / f"{0:08d}")
        for step, path in RunDirectory.open(run).checkpoints.kept():
            network = open_encoder(str(path), slot.device)
            failures += _evaluate(study.over_time, network, folder / "over_time" / f"{step:08d}")
    if not failures:
        write_json(folder / "done.json", _request(job, study))
    return list(dict.fromkeys(failures))


def _evaluate(measurements: Sequence[Measurement], network: tuple[Encoder, Provenance | None], out: Path) -> list[str]:
    """Measure a network, and return a sentence for each evaluation that failed and each column that no metric fills."""
    failures = []
    outcomes = evaluate_entries([m.entry for m in measurements], *network, out, {})
    for measurement, outcome in zip(measurements, outcomes, strict=True):
        if outcome.result is None:
            failures.append(f"{outcome.entry.folder}: {outcome.error}")
            continue
        metrics = outcome.result.metrics
        failures += [
            f"{outcome.entry.evaluation} has no metric {name!r} to show; its metrics are: {', '.join(metrics)}"
            for name in measurement.columns
            if name not in metrics
        ]
    return failures


def _train(config: RunConfig, data: str, run: Path, slot: WorkerSlot, optimizer: Mapping[str, Any]) -> None:
    """Begin or resume a training, unless it is finished."""
    if is_trained(run):
        return
    workers = loader_workers(config, slot)
    if (run / "config.yaml").is_file():
        resume(run, device=slot.device, workers=workers)
        return
    shutil.rmtree(run, ignore_errors=True)  # the job was killed while the folder was created
    loader = replace(config.loader, workers=workers)
    pretrain(replace(config, data=data, out=str(run), device=slot.device, loader=loader), optimizer=optimizer)


def loader_workers(config: RunConfig, slot: WorkerSlot) -> int:
    """Return the number of loader processes of a run."""
    return max(0, slot.threads - 1) if config.loader.workers is None else config.loader.workers


def is_trained(run: Path) -> bool:
    """Return whether the training of a run directory is finished."""
    return (run / "exported" / "backbone.safetensors").is_file()


def _random_encoder(config: RunConfig) -> BranchEncoder:
    """Return a run's network with random weights, also if the run starts from others."""
    if config.init is not None:
        return untrained_encoder(config, read_weights(config.init).config)
    return _encoder_before_training(config)


def _encoder_before_training(config: RunConfig) -> BranchEncoder:
    return teacher_encoder(make_student_teacher(config)[0].teacher).eval()


def _on_device(encoder: BranchEncoder, source: str, device: str) -> tuple[Encoder, Provenance]:
    return encoder.to(distributed.start(device)), Provenance(source, network_sha256(encoder))


def has_same_request(job: Job, out: Path) -> bool:
    """Return whether the folder of a job was begun with the job's present settings."""
    return _stored(out / job.folder / "request.json") == _settings(job)


def scores(results: Iterable[tuple[Measurement, Result]]) -> dict[str, float]:
    """Return the scores of results by column."""
    return {
        column: result.metrics[name]
        for measurement, result in results
        for name, column in measurement.columns.items()
        if name in result.metrics
    }


def degenerate_inputs(results: Iterable[tuple[Measurement, Result]]) -> list[str]:
    """Return a sentence for each kind of degenerate input in results, with the evaluation."""
    return [f"{m.entry.folder}: {warning}" for m, result in results for warning in result.warnings]


def stored_results(measurements: Sequence[Measurement], out: Path) -> Iterator[tuple[Measurement, Result]]:
    """Yield the results in a folder, without those of other settings."""
    for measurement in measurements:
        folder = out / measurement.entry.folder
        request, before = request_of(measurement.entry), stored_request(folder / "entry.json")
        if isinstance(before, dict) and {key: before.get(key) for key in request} == request:
            with contextlib.suppress(ValueError):  # a result that cannot be read is measured again
                yield measurement, Result.load(folder / "result.json")


def _request(job: Job, study: Study) -> Any:
    measurements = [*study.evaluations, *(study.over_time if job.trained else ())]
    return {"settings": _settings(job), "evaluations": [request_of(m.entry) for m in measurements]}


def _identity(weights: str | None) -> str | None:
    """Return a name of weights or of a baseline that does not depend on where a file is."""
    if weights is None or not Path(weights).exists():
        return weights
    files = files_of(weights_file(Path(weights)))
    return _file_identity(files, tuple(file.stat().st_mtime_ns for file in files))


@functools.cache
def _file_identity(files: tuple[Path, ...], modified: tuple[int, ...]) -> str:
    """Return the hash of files, read once for each time of modification."""
    return f"sha256 {file_sha256(*files)}"


def _settings(job: Job) -> Any:
    if job.config is None:
        return {"baseline": _identity(job.baseline)}
    return as_json({"trained": job.trained, "data": list(job.data), "run": run_settings(job.config)})


def run_settings(config: RunConfig) -> Any:
    """Return the settings that decide a run's numbers, as JSON gives them back; weights by their content."""
    run = {key: value for key, value in config.to_dict().items() if key not in MACHINE_SETTINGS}
    run["loader"] = {key: value for key, value in run["loader"].items() if key != "workers"}
    return as_json(run | {"init": _identity(config.init), "teacher": _identity(config.teacher)})


def stored_run_settings(stored: Any, file: Path) -> Any:
    """Return the `run_settings` that a file holds; those that are newer than the file have their defaults."""
    if isinstance(stored, dict):
        with contextlib.suppress(ValueError):  # a setting no longer exists, which is reported as a difference
            return run_settings(RunConfig.from_saved(stored, file))
    return stored


def _stored(path: Path) -> Any:
    """Return a stored request or job settings; settings of the run that are newer than the file have their defaults."""
    stored = read_json(path)
    settings = stored.get("settings", stored) if isinstance(stored, dict) else {}
    if isinstance(settings, dict) and "run" in settings:
        settings["run"] = stored_run_settings(settings["run"], path)
    return stored
