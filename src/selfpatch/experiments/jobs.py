"""Jobs of a study, independent of one another: a network, trained or not, and its evaluations.

Files in the folder of a job::

    run/                    run directory of the training
    evaluations/1-davis/    results, as a suite writes them
    over_time/00000100/     the same for the network after 100 steps
    request.json            settings that the job began with
    done.json               full request, written once the job is finished
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfpatch.api.encoder import open_encoder
from selfpatch.api.pretrain import pretrain, resume
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Provenance, Result, network_sha256
from selfpatch.experiments.records import as_json, differences, read_json, write_json
from selfpatch.experiments.spec import UNTRAINED, Arm, Measurement, Study
from selfpatch.experiments.suite import evaluate_entries, request_of
from selfpatch.experiments.suite_report import Outcome
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.online_eval import teacher_encoder

MACHINE_SETTINGS = ("data", "out", "device")
"""Settings of a run that may differ when a study continues."""


@dataclass(frozen=True)
class Job:
    """A network of a study and its evaluations.

    Attributes:
        row: line of the table that shows its scores.
        seed: seed of the run, or None for a baseline without randomness.
        folder: name of its folder.
        config: settings of the network, or None for a baseline without one.
        baseline: baseline as `selfpatch.load` takes it.
        trained: whether the network is trained; otherwise it stays as initialised.
        data: training data, by the study's names.
    """

    row: str
    seed: int | None
    folder: str
    config: RunConfig | None = None
    baseline: str = ""
    trained: bool = False
    data: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in messages."""
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"


@dataclass(frozen=True)
class WorkerSlot:
    """Device and CPU threads for one job at a time.

    Attributes:
        device: name of the device for torch.
        threads: number of CPU threads.
    """

    device: str
    threads: int


def jobs_of(study: Study, epochs: Mapping[str, float]) -> list[Job]:
    """Return all jobs: the baselines, then all arms seed by seed, so that a stopped study has compared something.

    Args:
        study: the study.
        epochs: epochs of the arms with equal training time, by name.

    Raises:
        ValueError: two jobs would share a line of the table or a folder, or the epochs of an arm are not possible.
    """
    jobs = [
        Job(_row_of_baseline(baseline), None, baseline.replace(":", "-"), baseline=baseline)
        for baseline in study.baselines
        if baseline != UNTRAINED
    ]
    networks = _networks(study.arms) if UNTRAINED in study.baselines else {}
    for seed in study.seeds:
        for arm in networks.values():
            words = UNTRAINED if arm.config.init is None else "initial weights"
            row = words if len(networks) == 1 else f"{words}, as of {arm.name}"
            jobs.append(Job(row, seed, f"{UNTRAINED}-{arm.slug}-seed{seed}", replace(arm.config, seed=seed)))
    for seed in study.seeds:
        for arm in study.arms:
            config = replace(arm.config, seed=seed, epochs=epochs.get(arm.name, arm.config.epochs))
            folder = f"{arm.slug}-seed{seed}"
            jobs.append(Job(arm.name, seed, folder, config, trained=True, data=tuple(study.pretrain)))
    _check_names(jobs)
    return jobs


def _check_names(jobs: Sequence[Job]) -> None:
    """Raise ValueError if an arm has the name or the folder of another job."""
    folders = [job.folder for job in jobs]
    arms = {job.row for job in jobs if job.trained}
    for job in jobs:
        if folders.count(job.folder) > 1 or (not job.trained and job.row in arms):
            raise ValueError(f"an arm and a baseline are both called {job.row!r}; give the arm another name")


def _row_of_baseline(baseline: str) -> str:
    """Return the words for a baseline: `baseline:mean-colour:8` -> `mean colour, 8 x 8 pixels`."""
    _, _, rest = baseline.partition(":")
    name, _, patch = rest.partition(":")
    return f"{name.replace('-', ' ')}, {patch} x {patch} pixels"


def _networks(arms: Sequence[Arm]) -> dict[Any, Arm]:
    """Return the first arm of each architecture, without regard to pools and heads."""
    networks: dict[Any, Arm] = {}
    for arm in arms:
        c = arm.config
        networks.setdefault((c.model, c.patch_size, c.backbone, c.crops.global_size, c.init), arm)
    return networks


def is_done(job: Job, study: Study, out: Path) -> bool:
    """Return whether the job finished with its present request and all of its results exist."""
    folder = out / job.folder
    columns = {column for m in study.evaluations for column in m.columns.values()}
    return read_json(folder / "done.json") == _request(job, study) and columns <= set(
        scores(study.evaluations, folder / "evaluations")
    )


def run_job(job: Job, study: Study, data: str, out: Path, slot: WorkerSlot) -> list[str]:
    """Do what is missing of a job.

    Args:
        job: the job.
        study: its study.
        data: training data, as `pretrain` takes it.
        out: folder of the study.
        slot: where the job runs.

    Returns:
        A sentence for each evaluation that failed.

    Raises:
        ValueError: the job began with other settings, or settings or data are wrong.
        Interrupted: a signal stopped the training after a checkpoint.
    """
    folder = out / job.folder
    _check_request(job, folder)
    if job.trained:
        _train(job, data, folder / "run", slot)
    encoder, record = _open(job, folder / "run", slot.device)
    outcomes = _evaluate(study.evaluations, encoder, record, folder / "evaluations")
    if job.trained and study.over_time:
        for step, (encoder, record) in _networks_over_time(job, folder / "run", slot.device):
            outcomes += _evaluate(study.over_time, encoder, record, folder / "over_time" / f"{step:08d}")
    failures = [f"{o.entry.folder}: {o.error}" for o in outcomes if o.error is not None]
    failures += _missing_metrics([*study.evaluations, *study.over_time], outcomes)
    if not failures:
        write_json(folder / "done.json", _request(job, study))
    return failures


def _missing_metrics(measurements: Sequence[Measurement], outcomes: Sequence[Outcome]) -> list[str]:
    """Return a sentence for each column that no metric fills."""
    found = [(m, o.result.metrics) for m in measurements for o in outcomes if o.entry == m.entry and o.result]
    sentences = [
        f"{m.entry.evaluation} has no metric {name!r} to show; its metrics are: {', '.join(metrics)}"
        for m, metrics in found
        for name in m.columns
        if name not in metrics
    ]
    return list(dict.fromkeys(sentences))


def _check_request(job: Job, folder: Path) -> None:
    """Raise ValueError if the folder holds a job with other settings."""
    before, now = read_json(folder / "request.json"), _settings(job)
    if before is None:
        write_json(folder / "request.json", now)
    elif different := differences(before, now):
        raise ValueError(
            f"{folder} was begun with other settings ({different[0]}); name another --out, or remove that folder"
        )


def _train(job: Job, data: str, run: Path, slot: WorkerSlot) -> None:
    """Begin or resume the training, unless it is finished."""
    assert job.config is not None
    if is_trained(run):
        return
    workers = loader_workers(job.config, slot)
    if (run / "config.yaml").is_file():
        resume(run, device=slot.device, workers=workers)
        return
    shutil.rmtree(run, ignore_errors=True)  # the job was killed while the folder was created
    loader = replace(job.config.loader, workers=workers)
    pretrain(replace(job.config, data=data, out=str(run), device=slot.device, loader=loader))


def loader_workers(config: RunConfig, slot: WorkerSlot) -> int:
    """Return the number of loader processes of a run."""
    return max(0, slot.threads - 1) if config.loader.workers is None else config.loader.workers


def is_trained(run: Path) -> bool:
    """Return whether the training of a run directory is finished."""
    return (run / "exported" / "backbone.safetensors").is_file()


def _open(job: Job, run: Path, device: str) -> tuple[Encoder, Provenance | None]:
    if job.trained:
        return open_encoder(str(run), device)
    if job.config is None:
        return open_encoder(job.baseline, device)
    return _untrained(job.config, device)


def _untrained(config: RunConfig, device: str) -> tuple[Encoder, Provenance]:
    encoder = teacher_encoder(make_student_teacher(config)[0]).eval()
    return encoder.to(distributed.start(device)), Provenance(UNTRAINED, network_sha256(encoder))


def _networks_over_time(job: Job, run: Path, device: str) -> Iterator[tuple[int, tuple[Encoder, Provenance | None]]]:
    """Yield the initial network and each kept checkpoint, with their numbers of steps."""
    assert job.config is not None
    yield 0, _untrained(job.config, device)
    for step, path in RunDirectory.open(run).checkpoints.kept():
        yield step, open_encoder(str(path), device)


def _evaluate(
    measurements: Sequence[Measurement], encoder: Encoder, record: Provenance | None, out: Path
) -> list[Outcome]:
    return evaluate_entries([m.entry for m in measurements], encoder, record, out, {})


def has_same_request(job: Job, out: Path) -> bool:
    """Return whether the folder of a job was begun with the job's present settings."""
    return read_json(out / job.folder / "request.json") == _settings(job)


def scores(measurements: Sequence[Measurement], out: Path) -> dict[str, float]:
    """Return the scores of the results in a folder by column, without results of other settings."""
    found: dict[str, float] = {}
    for measurement in measurements:
        folder = out / measurement.entry.folder
        request, before = request_of(measurement.entry), read_json(folder / "entry.json")
        if before is not None and {key: before.get(key) for key in request} == request:
            with contextlib.suppress(ValueError):  # a result that cannot be read is measured again
                metrics = Result.load(folder / "result.json").metrics
                found |= {column: metrics[name] for name, column in measurement.columns.items() if name in metrics}
    return found


def _request(job: Job, study: Study) -> Any:
    measurements = [*study.evaluations, *(study.over_time if job.trained else ())]
    return {"settings": _settings(job), "evaluations": [request_of(m.entry) for m in measurements]}


def _settings(job: Job) -> Any:
    if job.config is None:
        return {"baseline": job.baseline}
    settings = {key: value for key, value in job.config.to_dict().items() if key not in MACHINE_SETTINGS}
    settings["loader"] = {key: value for key, value in settings["loader"].items() if key != "workers"}
    return as_json({"trained": job.trained, "data": job.data, "run": settings})
