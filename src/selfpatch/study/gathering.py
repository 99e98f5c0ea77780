"""What lies on disk of a study, as the records that its report is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from selfpatch import measuring
from selfpatch.data.images import evenly_spread, load_images
from selfpatch.data.index import ImageIndex
from selfpatch.evaluation.result import current_versions, device_name
from selfpatch.pictures.curves import Point, points_of
from selfpatch.pictures.sheet import picture_sheet
from selfpatch.run import RunDirectory
from selfpatch.study.costs import COSTS, kept_seconds
from selfpatch.study.findings import Findings, Row, Seed
from selfpatch.study.jobs import Job, begun_alike, is_trained, scores
from selfpatch.study.plan import Study

METERS = {
    "loss": "loss",
    "view_matching": "patches matched across views, %",
    "entropy": "entropy of the teacher's distributions, nats",
    "patch_rank": "effective rank of the patch features",
}
"""What a run records that is drawn over its steps."""
SHEET_IMAGES, SHEET_SIDE = 6, 224
"""Images on the sheet of patch features, and their side in pixels."""


def gather(
    study: Study,
    jobs: Sequence[Job],
    out: Path,
    failures: Sequence[str],
    unfinished: int,
    command: str,
    draw: str | None = None,
) -> Findings:
    """All that is known so far; what is there of jobs with other settings is left out.

    Args:
        jobs: of the study, as `jobs.jobs_of` gives them.
        failures, unfinished, command: see `Findings`.
        draw: the device to draw the sheet of patch features on; None: it is not drawn anew.
    """
    by_row: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_row[job.row].append(job)
    begun = [job for job in jobs if begun_alike(job, out)]
    rows = [_row(name, [job for job in members if job in begun], study, out) for name, members in by_row.items()]
    trained = {job.row for job in jobs if job.trained}
    if draw is not None and study.pictures is not None:
        _draw_sheet(study, begun, out, draw)
    sheet = out / "figures" / "patch-features.png"
    return Findings(
        title=study.title,
        question=study.question,
        columns=[column for m in study.evaluations for column in m.columns.values()],
        floors=[row for row in rows if row.name not in trained],
        arms=[row for row in rows if row.name in trained],
        curves=_curves(study, begun, out),
        sheets=[sheet] if sheet.is_file() else [],
        failures=failures,
        conditions=_conditions(study, out, command),
        unfinished=unfinished,
        reference=study.reference,
    )


def _row(name: str, jobs: Sequence[Job], study: Study, out: Path) -> Row:
    numbers: dict[str, dict[Seed, float]] = defaultdict(dict)
    minutes: dict[int, float] = {}
    steps = None
    for job in jobs:
        for column, value in scores(study.evaluations, out / job.folder / "evaluations").items():
            numbers[column][job.seed] = value
        run = out / job.folder / "run"
        if job.trained and job.seed is not None and is_trained(run):
            rows = RunDirectory.open(run).rows()
            steps = max((row["step"] for row in rows), default=None)
            minutes[job.seed] = minutes_of(rows, RunDirectory.open(run).config.batch_size)
    return Row(name, numbers, steps, minutes)


def minutes_of(rows: Iterable[Mapping[str, Any]], batch_size: int) -> float:
    """Of the training steps alone: measurements and stops in between do not count."""
    logged = [row for row in rows if row.get("images_per_second")]
    steps = [0, *(row["step"] for row in logged)]
    images = [batch_size * (after - before) for before, after in pairwise(steps)]
    return sum(n / row["images_per_second"] for n, row in zip(images, logged, strict=True)) / 60


def _curves(study: Study, jobs: Sequence[Job], out: Path) -> dict[str, dict[str, list[Point]]]:
    """By heading and arm, over steps."""
    curves: dict[str, dict[str, list[list[Point]]]] = defaultdict(lambda: defaultdict(list))
    for job in (job for job in jobs if job.trained and (out / job.folder / "run" / "config.yaml").is_file()):
        rows = RunDirectory.open(out / job.folder / "run").rows()
        for meter, heading in METERS.items():
            curves[heading][job.row].append(_scaled(points_of(rows, meter), heading))
        for column, line in _stages(study, out / job.folder / "over_time").items():
            curves[f"{column}, %"][job.row].append(_scaled(line, "%"))
    means = {heading: {arm: mean_curve(lines) for arm, lines in arms.items()} for heading, arms in curves.items()}
    return {h: drawn for h, arms in means.items() if (drawn := {arm: line for arm, line in arms.items() if line})}


def _scaled(line: Sequence[Point], heading: str) -> list[Point]:
    """Fractions in percent, where the heading says so."""
    return [(x, 100 * y) for x, y in line] if heading.endswith("%") else list(line)


def _stages(study: Study, folder: Path) -> dict[str, list[Point]]:
    """By column, the scores of the network after so many steps."""
    lines: dict[str, list[Point]] = defaultdict(list)
    for stage in sorted(folder.glob("*")):
        for column, value in scores(study.over_time, stage).items():
            lines[column].append((float(stage.name), value))
    return lines


def mean_curve(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over seeds, at the steps that all of them have."""
    values: dict[float, list[float]] = defaultdict(list)
    for x, y in (point for line in lines for point in line):
        values[x].append(y)
    return [(x, fmean(ys)) for x, ys in sorted(values.items()) if len(ys) == len(lines)]


def _conditions(study: Study, out: Path, command: str) -> dict[str, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = ", ".join(f"{name} {version}" for name, version in current_versions().items())
    found = {
        "trained on": ", ".join("/".join(source.parts[-2:]) for source in study.pretrain),
        "seeds": ", ".join(map(str, study.seeds)),
        "device": device_name(device),
        "versions": versions,
    }
    if seconds := kept_seconds(out / COSTS):
        found["seconds a step, taken in turns"] = ", ".join(f"{arm} {s:.3g}" for arm, s in seconds.items())
    return found | ({"command": command} if command else {})


def _draw_sheet(study: Study, jobs: Sequence[Job], out: Path, device: str) -> None:
    """What each arm's network of the first seed makes of some images, and the untrained one."""
    assert study.pictures is not None
    first = [job for job in jobs if job.seed == study.seeds[0] and job.trained and is_trained(out / job.folder / "run")]
    if not first:
        return
    index = ImageIndex.open(study.pictures)
    runs = {job.row: str(out / job.folder / "run") for job in first}
    networks = {"untrained": f"untrained:{next(iter(runs.values()))}", **runs}
    encoders = {name: measuring.open_encoder(weights, device)[0] for name, weights in networks.items()}
    images = load_images(index, evenly_spread(np.arange(len(index)), SHEET_IMAGES), SHEET_SIDE).images
    (out / "figures").mkdir(exist_ok=True)
    picture_sheet(encoders, images, out / "figures" / "patch-features.png", title=study.title)
