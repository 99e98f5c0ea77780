"""Scores of ready-made masks against the official scorer, and means over objects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.video_segmentation.clip import write_mask
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from tests.evaluation.video_segmentation.conftest import Tree
from tests.helpers.command_line import write_davis


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shifted", "swapped"])
def test_official_scores_of_several_objects(name: str, full_golden_dir: Path) -> None:
    folder = full_golden_dir / "davis_metric"
    expected = json.loads((folder / "expected.json").read_text())[name]
    result = evaluate(None, folder / "DAVIS", DAVISConfig(results=str(folder / "results" / name)))
    assert result.metrics == pytest.approx(expected["global_means"], abs=1e-9)
    for measure in "JF":
        mine = {f"{row['sequence']}_{row['object']}": row[f"{measure}-Mean"] for row in result.rows}
        assert mine == pytest.approx(expected[f"{measure}_per_object"], abs=1e-9)


@pytest.mark.slow
def test_official_scores_of_osvos(data_dir: Path) -> None:
    expected = json.loads((data_dir / "davis" / "oracle" / "scores.json").read_text())
    names = [name.removesuffix("_1") for name in expected["sequences"]]
    result = evaluate(
        None, data_dir / "davis", DAVISConfig(results=str(data_dir / "davis" / "oracle" / "osvos"), sequences=names)
    )
    assert result.metrics == pytest.approx(expected["global"], abs=1e-9)


def test_objects_count_from_the_first_frame(tree: Tree) -> None:
    """One that comes later is not scored; a result that holds it is refused."""
    root = tree(frames=4)
    first = root / "Annotations/480p/toy/00000.png"
    write_mask(first, np.minimum(np.asarray(Image.open(first)), 1))
    assert [row["object"] for row in evaluate(None, root, DAVISConfig()).rows] == [1]
    with pytest.raises(ValueError, match="frame 00001 of toy has object 2; the clip has 1"):
        evaluate(None, root, DAVISConfig(results=str(root / "Annotations" / "480p")))


def test_perfect_results(tree: Tree) -> None:
    root = tree()
    metrics = evaluate(None, root, DAVISConfig(results=str(root / "Annotations" / "480p"))).metrics
    assert all(metrics[name] == 1 for name in ("J&F-Mean", "J-Mean", "F-Mean", "J-Recall", "F-Recall"))
    assert metrics["J-Decay"] == metrics["F-Decay"] == 0


def test_results_that_cannot_be_scored(tree: Tree, tmp_path: Path) -> None:
    root = tree()
    results = tmp_path / "results"
    results.mkdir()
    with pytest.raises(ValueError, match="no results for toy"):
        evaluate(None, root, DAVISConfig(results=str(results)))
    shutil.copytree(root / "Annotations" / "480p" / "toy", results / "toy")
    for unscored in ("00000.png", "00005.png"):
        (results / "toy" / unscored).unlink()
    assert evaluate(None, root, DAVISConfig(results=str(results))).metrics["J-Mean"] == 1
    write_mask(results / "toy" / "00003.png", np.zeros((64, 96), np.uint8))
    with pytest.raises(ValueError, match=r"frame 00003 of toy has shape \(64, 96\)"):
        evaluate(None, root, DAVISConfig(results=str(results)))
    (results / "toy" / "00003.png").unlink()
    with pytest.raises(ValueError, match=r"no mask .*00003\.png"):
        evaluate(None, root, DAVISConfig(results=str(results)))


def test_the_means_of_each_sequence(tmp_path: Path) -> None:
    """Means over its objects; the quoted ones are over the objects of all sequences."""
    root = write_davis(tmp_path / "davis", ("first", "second"))
    for i in range(4):  # the second one keeps one object
        path = root / f"Annotations/480p/second/{i:05d}.png"
        write_mask(path, (np.asarray(Image.open(path)) == 1).astype(np.uint8))
    result = evaluate(None, root, DAVISConfig())
    j = [row["J-Mean"] for row in result.rows]
    assert len(j) == 3
    assert result.per_image["first"]["J-Mean"] == pytest.approx((j[0] + j[1]) / 2)
    assert result.per_image["second"]["J-Mean"] == j[2]
    assert result.metrics["J-Mean"] == pytest.approx(sum(j) / 3)
    both = result.per_image["first"]
    assert both["J&F-Mean"] == pytest.approx((both["J-Mean"] + both["F-Mean"]) / 2)
