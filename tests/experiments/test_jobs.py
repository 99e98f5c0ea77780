"""The jobs of a study: which there are, and what one of them reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfpatch.experiments.jobs import WorkerSlot, is_done, jobs_of, run_job
from selfpatch.experiments.spec import read_study
from tests.helpers.tiny_study import PLAN, write_study


def test_the_jobs(tmp_path: Path) -> None:
    """Baselines first, then all arms of a seed before those of the next."""
    arms = {**PLAN["arms"], "longer": {"objective": "selfpatch", "equal_time": "DINO"}}
    study = read_study(write_study(tmp_path, arms=arms), tmp_path)
    jobs = jobs_of(study, {"longer": 2.5})
    assert [job.name for job in jobs] == [
        "mean colour, 4 x 4 pixels", "untrained, seed 0", "untrained, seed 1",
        "DINO, seed 0", "DINO + SelfPatch, seed 0", "longer, seed 0",
        "DINO, seed 1", "DINO + SelfPatch, seed 1", "longer, seed 1",
    ]  # fmt: skip
    assert [job.config.epochs for job in jobs if job.config is not None and job.seed == 1] == [4, 4, 4, 2.5]
    assert {job.config.seed for job in jobs if job.config is not None and job.seed == 1} == {1}
    assert len({job.folder for job in jobs}) == len(jobs)


def test_each_architecture_has_an_untrained_baseline_of_its_own(tmp_path: Path) -> None:
    arms = {"small": {"objective": "none"}, "deep": {"objective": "none", "backbone": {"depth": 3}}}
    jobs = jobs_of(read_study(write_study(tmp_path, arms=arms, seeds=[0]), tmp_path), {})
    assert [job.row for job in jobs if not job.trained] == [
        "mean colour, 4 x 4 pixels", "untrained, as of small", "untrained, as of deep",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arms", "baselines"),
    [
        ({"untrained": {}}, ["untrained"]),
        ({"mean colour, 4 x 4 pixels": {}}, ["baseline:mean-colour:4"]),
        ({"untrained A": {"backbone": {"depth": 1}}, "A": {}}, ["untrained"]),
    ],
)
def test_an_arm_is_not_taken_for_a_baseline(tmp_path: Path, arms: dict[str, Any], baselines: list[str]) -> None:
    study = read_study(write_study(tmp_path, arms=arms, baselines=baselines), tmp_path)
    with pytest.raises(ValueError, match="an arm and a baseline are both called"):
        jobs_of(study, {})


def test_a_metric_that_is_not_there_is_named(tmp_path: Path) -> None:
    evaluations = [{"davis": {"data": "davis", "resolution": 48}, "columns": {"mIoU": "mIoU"}}]
    study = read_study(write_study(tmp_path, evaluations=evaluations), tmp_path)
    job = next(job for job in jobs_of(study, {}) if job.baseline)
    failures = run_job(job, study, "", tmp_path / "out", WorkerSlot("cpu", 1))
    assert failures == ["davis has no metric 'mIoU' to show; its metrics are: " + ", ".join(DAVIS)]
    assert not is_done(job, study, tmp_path / "out")


DAVIS = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
