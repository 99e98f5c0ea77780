"""The jobs of a study: which there are, and what one of them reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfpatch.experiments.jobs import WorkerSlot, has_same_request, is_done, jobs_of, run_job, training_data
from selfpatch.experiments.records import as_json, write_json
from selfpatch.experiments.spec import read_study
from tests.helpers.tiny_study import FROM_WEIGHTS, PLAN, write_study, write_weights


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


def test_arms_with_their_own_seeds(tmp_path: Path) -> None:
    """All arms of the first seed come first; an architecture stays untrained with the seeds of its arms."""
    arms = {
        "A": {"objective": "none", "seeds": [7]},
        "B": {},
        "deep": {"objective": "none", "backbone": {"depth": 3}, "seeds": [1]},
    }
    jobs = jobs_of(read_study(write_study(tmp_path, arms=arms, baselines=["untrained"]), tmp_path), {})
    assert [job.name for job in jobs] == [
        "untrained, as of A, seed 7", "untrained, as of A, seed 0", "untrained, as of A, seed 1",
        "untrained, as of deep, seed 1", "A, seed 7", "B, seed 0", "B, seed 1", "deep, seed 1",
    ]  # fmt: skip


def test_weights_stay_the_same_where_their_file_moves(tmp_path: Path) -> None:
    """The request of a job holds the content of the weights, not their path."""
    file, out = Path(write_weights(tmp_path)), tmp_path / "out"
    path = write_study(tmp_path, **{**FROM_WEIGHTS, "over_time": None})
    study = read_study(path, tmp_path, weights=str(file))
    as_is = jobs_of(study, {})[0]
    assert (as_is.name, as_is.baseline, as_is.folder) == ("as is", str(file), "as-is")
    assert run_job(as_is, study, out, WorkerSlot("cpu", 1)) == []
    moved = file.rename(tmp_path / "moved.safetensors")
    study = read_study(path, tmp_path, weights=str(moved))
    assert is_done(jobs_of(study, {})[0], study, out)
    study = read_study(path, tmp_path, weights=write_weights(tmp_path, seed=1))
    assert not is_done(jobs_of(study, {})[0], study, out)
    with pytest.raises(ValueError, match="was begun with other settings"):
        run_job(jobs_of(study, {})[0], study, out, WorkerSlot("cpu", 1))


def test_a_setting_that_is_newer_than_a_study_does_not_end_it(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path), tmp_path)
    job, out = jobs_of(study, {})[-1], tmp_path / "out"
    stored = {"trained": True, "data": ["photos"], "run": job.config.to_dict()}
    del stored["run"]["optimizer"]["layer_decay"], stored["run"]["packing"]
    write_json(out / job.folder / "request.json", as_json(stored))
    assert has_same_request(job, out)
    stored["run"]["optimizer"]["clip"] = 1.0
    write_json(out / job.folder / "request.json", as_json(stored))
    assert not has_same_request(job, out)
    del stored["run"]["optimizer"]["clip"]
    stored["run"]["optimizer"]["forgotten"] = 1
    write_json(out / job.folder / "request.json", as_json(stored))
    with pytest.raises(ValueError, match=r"begun with other settings \(run.optimizer.layer_decay is None there"):
        run_job(job, study, out, WorkerSlot("cpu", 1))


def test_warm_ups_that_a_study_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the recipe has the same length; a size may shorten the training, not the warm-up."""
    named: list[Any] = []
    monkeypatch.setattr("selfpatch.experiments.jobs.pretrain", lambda config, **settings: named.append(settings))
    monkeypatch.setattr("selfpatch.experiments.jobs.open_encoder", lambda *_: pytest.fail("trained"))
    arms = {"DINO": {"objective": "none", "optimizer": {"freeze_last_layer_epochs": 1}}}
    study = read_study(write_study(tmp_path, arms=arms), tmp_path)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        run_job(jobs_of(study, {})[-1], study, tmp_path / "out", WorkerSlot("cpu", 1))
    assert named == [{"optimizer": {"warmup_epochs": 1, "freeze_last_layer_epochs": 1}}]


def test_several_sources_are_listed_in_a_file(tmp_path: Path) -> None:
    data = {"photos": tmp_path / "photos", "davis/JPEGImages": tmp_path / "davis"}
    assert training_data({"photos": tmp_path / "photos"}, tmp_path) == str(tmp_path / "photos")
    path = Path(training_data(data, tmp_path))
    assert path == tmp_path / "images-photos-davis-jpegimages.txt"
    assert path.read_text().splitlines() == [str(tmp_path / "photos"), str(tmp_path / "davis")]


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
    failures = run_job(job, study, tmp_path / "out", WorkerSlot("cpu", 1))
    assert failures == ["davis has no metric 'mIoU' to show; its metrics are: " + ", ".join(DAVIS)]
    assert not is_done(job, study, tmp_path / "out")


DAVIS = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
