"""Measurements of a running training: images that cannot be read are named, and what is left of the measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.api.evaluate import evaluate
from selfpatch.api.pretrain import pretrain
from selfpatch.config.schema import Size
from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.data.sources.index import ImageIndex
from selfpatch.training.dataset import TrainingData
from selfpatch.training.factory import make_online_evaluator
from selfpatch.training.online_eval import OnlineEvaluator, sheet_size, teacher_encoder
from selfpatch.visualization.explorer import page
from tests.helpers.command_line import write_photos
from tests.helpers.tiny import tiny_config, tiny_student_teacher


def evaluator(folder: Path, held_out: list[int], unreadable: list[int], **watch: int) -> OnlineEvaluator:
    """Return an evaluator of images 0, 1, ... of a folder, some of which are damaged first."""
    index = ImageIndex.open(folder, folder.parent / "cache")
    for i in unreadable:
        index.path(i).write_bytes(b"no image")
    others = np.setdiff1d(np.arange(len(index)), held_out)
    data = TrainingData(index, others, index, np.array(held_out, np.int64))
    config = tiny_config(watch={"picture_images": 2, **watch})
    return make_online_evaluator(config, tiny_student_teacher(), data, folder.parent / "pictures")


@pytest.mark.parametrize("unreadable", [[], [1], [0, 1, 2]])
def test_unreadable_held_out_images_are_named(tmp_path: Path, unreadable: list[int]) -> None:
    photos = write_photos(tmp_path / "photos", 10, size=32)
    made = evaluator(photos, [0, 1, 2], unreadable)
    metrics = made(tiny_student_teacher().teacher, 0)
    assert list(made.bad) == [str(photos / f"{i:03d}.png") for i in unreadable]
    assert all(reason.startswith("it is empty, damaged, or no image") for reason in made.bad.values())
    path = photos / "001.png" if unreadable == [1] else photos / "000.png"
    expected = {
        0: [],
        1: [f"1 of the 3 held-out images cannot be read, e.g. {path}: ", "it is measured on the others"],
        3: [f"none of the 3 held-out images can be read, e.g. {path}: ", "view matching and pictures are left out"],
    }[len(unreadable)]
    assert len(made.warnings) == bool(unreadable)
    assert all(part in made.warnings[0] for part in expected)
    assert ("view_matching" in metrics) == (len(unreadable) < 3)
    assert ("view_matching_mean_colour" in metrics) == (len(unreadable) < 3)
    assert any((tmp_path / "pictures").glob("*.png")) == (len(unreadable) < 3)


@pytest.mark.parametrize("unreadable", [[3], [*range(2, 10)]])
def test_unreadable_images_for_knn_are_named(tmp_path: Path, unreadable: list[int]) -> None:
    for name in ("a", "b"):
        write_photos(tmp_path / "photos" / name, 5, size=32)
    made = evaluator(tmp_path / "photos", [0, 1], unreadable)
    metrics = made(tiny_student_teacher().teacher, 0)
    assert ("knn_top1" in metrics) == (len(unreadable) == 1)
    assert len(made.bad) == len(unreadable)
    found = "none of the 8 images for k-NN can" if len(unreadable) == 8 else "1 of the 8 images for k-NN cannot"
    assert made.warnings[0].startswith(f"{found} be read, e.g. {tmp_path / 'photos'}")
    assert len(made.warnings) == 1


@pytest.mark.parametrize(("per_class", "reads"), [(1, False), (2, True)])
def test_images_are_read_for_knn_if_others_share_their_class(tmp_path: Path, per_class: int, reads: bool) -> None:
    for name in "abcd":
        write_photos(tmp_path / "photos" / name, per_class, size=32)
    # A damaged image is noticed when it is read.
    last = 4 * per_class - 1
    made = evaluator(tmp_path / "photos", [], [last])
    assert len(made.bad) == reads
    assert ("knn_top1" in made(tiny_student_teacher().teacher, 0)) == reads


def test_view_matching_is_that_of_the_evaluation(tmp_path: Path) -> None:
    photos, student_teacher = write_photos(tmp_path / "photos", 10, size=32), tiny_student_teacher()
    metrics = evaluator(photos, [*range(10)], [])(student_teacher.teacher, 0)
    networks = {
        "view_matching": teacher_encoder(student_teacher.teacher),
        "view_matching_mean_colour": "baseline:mean-colour:4",
    }
    for name, network in networks.items():
        result = evaluate("match", network, photos, resolution=16)
        assert metrics[name] == pytest.approx(result.metrics["matched"])


@pytest.mark.parametrize(
    ("crop", "sheet"), [(16, (28 * 4, 28 * 4)), ((16, 32), (20 * 4, 40 * 4)), ((64, 16), (56 * 4, 14 * 4))]
)
def test_images_of_a_sheet_have_the_shape_of_global_crops(crop: Size, sheet: tuple[int, int]) -> None:
    assert sheet_size(ViewRecipe(crop, (0.5, 1.0)), 4) == sheet


def test_no_held_out_images_are_no_warning(tmp_path: Path) -> None:
    made = evaluator(write_photos(tmp_path / "photos", 4, size=32), [], [])
    assert (made.bad, made.warnings) == ({}, [])
    assert made(tiny_student_teacher().teacher, 0) == {}


@pytest.mark.slow
def test_a_run_says_that_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 20, size=32)
    settings = {"held_out": 2, "workers": 0}
    config = tiny_config(data=str(photos), out=str(tmp_path / "run"), epochs=1, device="cpu", loader=settings)
    index = ImageIndex.open(photos)
    held_out = [index.path(int(i)) for i in index.split(2, config.seed)[1]]
    for path in held_out:
        path.write_bytes(b"no image")
    run = pretrain(config)
    said = capsys.readouterr().out
    assert f"warning: none of the 2 held-out images can be read, e.g. {held_out[0]}: it is empty, damaged" in said
    skipped = (run / "skipped.txt").read_text().splitlines()
    assert [line.partition("\t")[0] for line in skipped] == [*map(str, held_out)]
    assert "show --weights" in said
    assert f"{run} {held_out[0]}" not in said


def test_features_that_are_not_finite_have_no_score(tmp_path: Path) -> None:
    """Matches and neighbours of NaN would be numbers like any others."""
    for name in ("a", "b"):
        write_photos(tmp_path / "photos" / name, 5, size=32)
    made = evaluator(tmp_path / "photos", [0, 1], [])
    student_teacher = tiny_student_teacher()
    assert all(np.isfinite(value) for value in made(student_teacher.teacher, 0).values())
    with torch.no_grad():
        next(student_teacher.teacher.backbone.parameters()).fill_(torch.nan)
    metrics = made(student_teacher.teacher, 1)
    assert set(metrics) >= {"view_matching", "knn_top1"}
    assert all(np.isnan(value) for value in metrics.values())
    untrained = teacher_encoder(tiny_student_teacher().teacher)
    assert made.write_explorer(tmp_path / "explore.html", student_teacher.teacher, untrained) is None


def test_the_page_of_before_and_after_shows_the_images_of_the_sheet(tmp_path: Path) -> None:
    made = evaluator(write_photos(tmp_path / "photos", 4, size=32), [0, 1], [1], picture_images=2)
    untrained, path = teacher_encoder(tiny_student_teacher().teacher), tmp_path / "explore.html"
    assert made.write_explorer(path, tiny_student_teacher().teacher, untrained) == path
    text = path.read_text()
    assert text.count("data:image/jpeg;base64,") == 1, "the other one is unreadable"
    assert '"name": "untrained"' in text
    assert '"name": "trained"' in text


def test_a_page_that_would_be_too_large_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evaluator(write_photos(tmp_path / "photos", 4, size=32), [0, 1], [1], picture_images=2)
    untrained, path = teacher_encoder(tiny_student_teacher().teacher), tmp_path / "explore.html"
    monkeypatch.setattr(page, "MEGABYTE", 1)
    assert made.write_explorer(path, tiny_student_teacher().teacher, untrained) is None
    assert "warning: explore.html is left out: a page of 1 image with" in capsys.readouterr().out
    assert not path.exists()
