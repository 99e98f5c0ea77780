"""The jobs of a study, each of which knows of no other: a network, trained or not, and all that is measured of it.

In the folder of a job::

    run/                    the run directory of what is trained
    evaluations/1-davis/    as a suite writes them
    over_time/00000100/     the same, of the network after so many steps
    asked.json              the settings that it was begun with
    done.json               all that was asked of it, written once it is done
"""

from __future__ import annotations

import contextlib
import json
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
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Provenance, Result, network_sha256
from selfpatch.experiments.spec import UNTRAINED, Arm, Measurement, Study
from selfpatch.experiments.suite import as_json, asked_of, differences, evaluate_entries
from selfpatch.experiments.suite_report import Outcome
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.online_eval import teacher_encoder

WHERE_AND_HOW = ("data", "out", "device")
"""Settings of a run that may differ when a study goes on."""


@dataclass(frozen=True)
class Job:
    """Attributes:
    row: the line of the table that its numbers stand in.
    seed: None: nothing in it is random.
    folder: its name.
    config: of the network; None: a baseline without one.
    baseline: as `selfpatch.load` takes it.
    trained: else the network stays as it is when its training begins.
    data: what it is trained on, by the study's names.
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
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"


@dataclass(frozen=True)
class Place:
    """Where a job runs.

    Attributes:
        device: as torch names it.
        threads: of the CPU that are its own.
    """

    device: str
    threads: int


def jobs_of(study: Study, epochs: Mapping[str, float]) -> list[Job]:
    """All jobs, the floors first, then the arms seed by seed, so that a study that is stopped has compared something.

    Args:
        epochs: of the arms that train for as long as another one, by name.

    Raises:
        ValueError: two of them would be one line of the table, or lie in one folder; or an arm cannot be trained for so
            long.
    """
    jobs = [
        Job(_in_words(floor), None, floor.replace(":", "-"), baseline=floor)
        for floor in study.floors
        if floor != UNTRAINED
    ]
    networks = _networks(study.arms) if UNTRAINED in study.floors else {}
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
    _refuse_twins(jobs)
    return jobs


def _refuse_twins(jobs: Sequence[Job]) -> None:
    folders = [job.folder for job in jobs]
    arms = {job.row for job in jobs if job.trained}
    for job in jobs:
        if folders.count(job.folder) > 1 or (not job.trained and job.row in arms):
            raise ValueError(f"an arm and a floor are both called {job.row!r}; give the arm another name")


def _in_words(baseline: str) -> str:
    """`baseline:mean-colour:8` -> `mean colour, 8 x 8 pixels`."""
    _, _, rest = baseline.partition(":")
    name, _, patch = rest.partition(":")
    return f"{name.replace('-', ' ')}, {patch} x {patch} pixels"


def _networks(arms: Sequence[Arm]) -> dict[Any, Arm]:
    """The first arm of each architecture; pools and heads do not count."""
    networks: dict[Any, Arm] = {}
    for arm in arms:
        c = arm.config
        networks.setdefault((c.model, c.patch_size, c.backbone, c.crops.global_size, c.init), arm)
    return networks


def is_done(job: Job, study: Study, out: Path) -> bool:
    """Whether nothing is left to do for it: all that is asked now was done before, and the results are there."""
    folder = out / job.folder
    columns = [column for m in study.evaluations for column in m.columns.values()]
    return _read_json(folder / "done.json") == _asked(job, study) and set(columns) <= set(
        scores(study.evaluations, folder / "evaluations")
    )


def run_job(job: Job, study: Study, data: str, out: Path, place: Place) -> list[str]:
    """Does what is left to do.

    Args:
        data: of the training, as `pretrain` takes it.
        out: folder of the study.

    Returns:
        A sentence for each evaluation that failed.

    Raises:
        ValueError: the job was begun with other settings, or something about settings or data is wrong.
        Interrupted: a signal stopped the training, after a checkpoint.
    """
    folder = out / job.folder
    _refuse_other_settings(job, folder)
    if job.trained:
        _train(job, data, folder / "run", place)
    encoder, record = _open(job, folder / "run", place.device)
    outcomes = _evaluate(study.evaluations, encoder, record, folder / "evaluations")
    if job.trained and study.over_time:
        for step, (encoder, record) in _stages(job, folder / "run", place.device):
            outcomes += _evaluate(study.over_time, encoder, record, folder / "over_time" / f"{step:08d}")
    failures = [f"{o.entry.folder}: {o.error}" for o in outcomes if o.error is not None]
    failures += _missing_metrics([*study.evaluations, *study.over_time], outcomes)
    if not failures:
        write_atomically(folder / "done.json", json.dumps(_asked(job, study), indent=1) + "\n")
    return failures


def _missing_metrics(measurements: Sequence[Measurement], outcomes: Sequence[Outcome]) -> list[str]:
    """A sentence for each column that no evaluation fills."""
    found = [(m, o.result.metrics) for m in measurements for o in outcomes if o.entry == m.entry and o.result]
    sentences = [
        f"{m.entry.evaluation} has no metric {name!r} to show; its metrics are: {', '.join(metrics)}"
        for m, metrics in found
        for name in m.columns
        if name not in metrics
    ]
    return list(dict.fromkeys(sentences))


def _refuse_other_settings(job: Job, folder: Path) -> None:
    """What is there is never overwritten, nor taken for something that it is not."""
    before, now = _read_json(folder / "asked.json"), _settings(job)
    if before is None:
        write_atomically(folder / "asked.json", json.dumps(now, indent=1) + "\n")
    elif different := differences(before, now):
        raise ValueError(
            f"{folder} was begun with other settings ({different[0]}); name another --out, or remove that folder"
        )


def _train(job: Job, data: str, run: Path, place: Place) -> None:
    """Begins, goes on, or finds that it is finished."""
    assert job.config is not None
    if is_trained(run):
        return
    workers = loader_workers(job.config, place)
    if (run / "config.yaml").is_file():
        resume(run, device=place.device, workers=workers)
        return
    shutil.rmtree(run, ignore_errors=True)  # killed while it was being made
    loader = replace(job.config.loader, workers=workers)
    pretrain(replace(job.config, data=data, out=str(run), device=place.device, loader=loader))


def loader_workers(config: RunConfig, place: Place) -> int:
    return max(0, place.threads - 1) if config.loader.workers is None else config.loader.workers


def is_trained(run: Path) -> bool:
    return (run / "exported" / "backbone.safetensors").is_file()


def _open(job: Job, run: Path, device: str) -> tuple[Encoder, Provenance | None]:
    if job.trained:
        return open_encoder(str(run), device)
    if job.config is None:
        return open_encoder(job.baseline, device)
    return _untrained(job.config, device)


def _untrained(config: RunConfig, device: str) -> tuple[Encoder, Provenance]:
    student_teacher, _ = make_student_teacher(config)
    encoder = teacher_encoder(student_teacher).eval()
    return encoder.to(distributed.start(device)), Provenance(UNTRAINED, network_sha256(encoder))


def _stages(job: Job, run: Path, device: str) -> Iterator[tuple[int, tuple[Encoder, Provenance | None]]]:
    """Networks by the steps behind them: as training begins, then the checkpoints that were kept."""
    assert job.config is not None
    yield 0, _untrained(job.config, device)
    for step, path in RunDirectory.open(run).checkpoints.kept():
        yield step, open_encoder(str(path), device)


def _evaluate(
    measurements: Sequence[Measurement], encoder: Encoder, record: Provenance | None, out: Path
) -> list[Outcome]:
    return evaluate_entries([m.entry for m in measurements], encoder, record, out, {})


def begun_alike(job: Job, out: Path) -> bool:
    """Whether what lies in its folder is of this job, and not of one with other settings."""
    return _read_json(out / job.folder / "asked.json") == _settings(job)


def scores(measurements: Sequence[Measurement], out: Path) -> dict[str, float]:
    """What the table shows of results in a folder, by column; what is not there, or was measured otherwise, is left
    out.
    """
    found: dict[str, float] = {}
    for measurement in measurements:
        folder = out / measurement.entry.folder
        asked = asked_of(measurement.entry)
        before = _read_json(folder / "entry.json")
        if before is not None and {key: before.get(key) for key in asked} == asked:
            with contextlib.suppress(ValueError):  # a result that cannot be read is measured again
                metrics = Result.load(folder / "result.json").metrics
                found |= {column: metrics[name] for name, column in measurement.columns.items() if name in metrics}
    return found


def _asked(job: Job, study: Study) -> Any:
    measured = [*study.evaluations, *(study.over_time if job.trained else ())]
    return {"settings": _settings(job), "evaluations": [asked_of(m.entry) for m in measured]}


def _settings(job: Job) -> Any:
    if job.config is None:
        return {"baseline": job.baseline}
    settings = {key: value for key, value in job.config.to_dict().items() if key not in WHERE_AND_HOW}
    settings["loader"] = {key: value for key, value in settings["loader"].items() if key != "workers"}
    return as_json({"trained": job.trained, "data": job.data, "run": settings})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or cut
        return None
