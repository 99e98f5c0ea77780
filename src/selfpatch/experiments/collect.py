"""Collection of the results of a study from its folder."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from selfpatch.api.encoder import open_encoder
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.core.machine import current_versions, device_name
from selfpatch.data.images import evenly_spread, load_images
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.result import Result
from selfpatch.experiments.jobs import Job, degenerate_inputs, has_same_request, is_trained, scores, stored_results
from selfpatch.experiments.results import Row, Seed, StudyResults
from selfpatch.experiments.spec import AS_IS, UNTRAINED, Measurement, Study
from selfpatch.experiments.timing import TIMING_FILE, stored_ratios
from selfpatch.training.loggers.metrics import read_numbers
from selfpatch.visualization.curves import Point, points_of
from selfpatch.visualization.sheet import picture_sheet

METERS = {
    "loss": ("loss", 1),
    "view_matching": ("view matching, %", 100),
    "entropy": ("entropy of the teacher's distributions, nats", 1),
    "patch_rank": ("effective rank of the patch features", 1),
}
"""Metrics of a run that are drawn over its steps, with their headings and factors."""
SHEET = Path("figures", "patch-features.png")
SHEET_IMAGES, SHEET_SIDE = 6, 224
"""Number of images on the sheet of patch features, and their approximate side in pixels."""


def collect_results(
    study: Study,
    jobs: Sequence[Job],
    out: Path,
    failures: Sequence[str],
    num_unfinished: int,
    command: str,
    device: str,
) -> StudyResults:
    """Return all results so far, except from jobs with other settings.

    The report states the sentences in `failures`, the number of jobs that have not run yet, the command that was called
    (empty if it is not known) and the device of the jobs (empty if a cluster chose it).
    """
    jobs_by_row: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        jobs_by_row[job.row].append(job)
    begun = [job for job in jobs if has_same_request(job, out)]
    found = {job.name: [*stored_results(study.evaluations, out / job.folder / "evaluations")] for job in begun}
    rows = [_row(name, [job for job in members if job in begun], found, out) for name, members in jobs_by_row.items()]
    trained = {job.row for job in jobs if job.trained}
    sheet = out / SHEET
    return StudyResults(
        title=study.title,
        question=study.question,
        columns=[column for m in study.evaluations for column in m.columns.values()],
        baselines=[row for row in rows if row.name not in trained],
        arms=[row for row in rows if row.name in trained],
        curves=_curves(study, begun, out),
        sheets=[sheet] if sheet.is_file() else [],
        failures=failures,
        warnings=[f"{job.name}, {warning}" for job in begun for warning in degenerate_inputs(found[job.name])],
        conditions=_conditions(study, out, command, device),
        num_unfinished=num_unfinished,
        reference=study.reference,
    )


def _row(name: str, jobs: Sequence[Job], found: Mapping[str, Sequence[tuple[Measurement, Result]]], out: Path) -> Row:
    numbers: dict[str, dict[Seed, float]] = defaultdict(dict)
    minutes: dict[int, float] = {}
    steps = None
    for job in jobs:
        for column, value in scores(found[job.name]).items():
            numbers[column][job.seed] = value
        if job.trained and job.seed is not None and is_trained(out / job.folder / "run"):
            run = RunDirectory.open(out / job.folder / "run")
            rows = read_numbers(run.path)
            steps = max((row["step"] for row in rows), default=None)
            minutes[job.seed] = training_minutes(rows, RunConfig.from_saved(run.settings, run.settings_file).batch_size)
    return Row(name, numbers, steps, minutes)


def training_minutes(rows: Iterable[Mapping[str, Any]], batch_size: int) -> float:
    """Return the wall-clock time of the training steps in minutes, without evaluations and stops."""
    logged = [row for row in rows if row.get("images_per_second")]
    steps = [0, *(row["step"] for row in logged)]
    images = [batch_size * (after - before) for before, after in pairwise(steps)]
    return sum(n / row["images_per_second"] for n, row in zip(images, logged, strict=True)) / 60


def _curves(study: Study, jobs: Sequence[Job], out: Path) -> dict[str, dict[str, list[Point]]]:
    """Return curves over the steps of finished trainings, by heading and arm."""
    curves: dict[str, dict[str, list[list[Point]]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        folder = out / job.folder
        if job.trained and is_trained(folder / "run"):
            rows = read_numbers(folder / "run")
            for meter, (heading, factor) in METERS.items():
                curves[heading][job.row].append([(x, factor * y) for x, y in points_of(rows, meter)])
            lines: dict[str, list[Point]] = defaultdict(list)
            for checkpoint in sorted(folder.glob("over_time/*")):
                for column, value in scores(stored_results(study.over_time, checkpoint)).items():
                    lines[f"{column}, %"].append((float(checkpoint.name), 100 * value))
            for heading, line in lines.items():
                curves[heading][job.row].append(line)
    return {
        heading: {arm: mean_curve([line for line in lines if line]) for arm, lines in arms.items()}
        for heading, arms in curves.items()
    }


def mean_curve(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the mean over seeds at the steps that all seeds have."""
    values: dict[float, list[float]] = defaultdict(list)
    for x, y in (point for line in lines for point in line):
        values[x].append(y)
    return [(x, fmean(ys)) for x, ys in sorted(values.items()) if len(ys) == len(lines)]


def _conditions(study: Study, out: Path, command: str, device: str) -> dict[str, str]:
    arms_by_data: dict[str, list[str]] = defaultdict(list)
    for arm in study.arms:
        arms_by_data[", ".join(arm.pretrain)].append(arm.name)
    if len(arms_by_data) == 1:
        trained_on = list(arms_by_data)
    else:
        trained_on = [f"{data} ({'; '.join(arms)})" for data, arms in arms_by_data.items()]
    conditions = {
        "trained on": "; ".join(trained_on),
        "seeds": ", ".join(map(str, study.seeds)),
        **({"device": device_name(torch.device(device))} if device else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in current_versions().items()),
    }
    ratios = stored_ratios(study, out / TIMING_FILE)
    for arm in study.arms:
        if ratio := ratios.get(arm.name):
            conditions[f"an epoch of {arm.name}"] = f"takes {1 / ratio:.2f} times as long as one of {arm.equal_time}"
    return conditions | ({"command": command} if command else {})


def draw_sheet(study: Study, jobs: Sequence[Job], out: Path, device: str, notify: Callable[[str], None]) -> None:
    """Draw the patch features of each arm's network of its first seed, and of the first arm before its training.

    `notify` is called with a line for each unreadable image, which is left out.

    Raises:
        ValueError: there are no images, or the networks accept no common image size.
    """
    first_seed = {(arm.name, arm.seeds[0]) for arm in study.arms}
    trained = [job for job in jobs if (job.row, job.seed) in first_seed and has_same_request(job, out)]
    runs = {job.row: str(out / job.folder / "run") for job in trained if is_trained(out / job.folder / "run")}
    if not runs or study.pictures is None:
        return
    before = {job.row: job.baseline for job in jobs if job.row == AS_IS}
    networks = {**(before or {UNTRAINED: f"untrained:{next(iter(runs.values()))}"}), **runs}
    encoders = {name: open_encoder(weights, device)[0] for name, weights in networks.items()}
    unit = math.lcm(*(encoder.patch_size for encoder in encoders.values()))
    side = unit * max(1, round(SHEET_SIDE / unit))
    index = ImageIndex.open(study.pictures)
    chosen = evenly_spread(np.arange(len(index)), SHEET_IMAGES)
    images = load_images(index, chosen, side, on_bad=lambda error: notify(f"{error}; it is not on the sheet")).images
    (out / SHEET).parent.mkdir(exist_ok=True)
    picture_sheet(encoders, images, out / SHEET, title=study.title)
