"""k-NN classification of a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.core.types import Encoder
from selfpatch.evaluation.classification.knn import evaluate as evaluation
from selfpatch.evaluation.classification.knn.config import KNNConfig
from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.evaluation.result import Output, Result, silent
from selfpatch.ops import knn


def run(encoder: Encoder, data: Path, *, out: Path | None = None, progress: Any = None, **settings: Any) -> Result:
    return evaluation.evaluate(encoder, data, KNNConfig.from_settings(settings), Output(out, progress or silent))


def test_votes_of_test_images_are_made_in_blocks(coloured_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"ks": (1, 5), "resize": 16, "crop": 16}
    at_once = run(MeanColour(8), coloured_folder, **settings)
    num_queries, votes = [], evaluation.class_votes

    def counted(similarity: torch.Tensor, *others: Any, **settings: Any) -> torch.Tensor:
        num_queries.append(len(similarity))
        return votes(similarity, *others, **settings)

    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 9)
    monkeypatch.setattr(evaluation, "class_votes", counted)
    assert run(MeanColour(8), coloured_folder, **settings) == at_once
    assert num_queries == 2 * [3, 3, 2]  # of 3 classes


def test_unreadable_images_are_counted_and_named(coloured_folder: Path) -> None:
    (coloured_folder / "train" / "b" / "1.png").write_bytes(b"no image")
    (coloured_folder / "val" / "c" / "2.png").write_bytes(b"no image")
    result = run(MeanColour(8), coloured_folder, ks=(1,), resize=16, crop=16)
    assert [result.settings[name] for name in ("unreadable", "train_images", "test_images")] == [2, 11, 7]
    assert result.notes == ["2 images could not be read, left out: train/b/1.png, val/c/2.png"]
    assert "train/b/1.png" in str(result.table().caption)
    result = run(MeanColour(8), coloured_folder, ks=(12, 20), resize=16, crop=16)
    assert (result.settings["ks"], result.notes[1:]) == ([11], ["All 11 training images vote, as ks are 12, 20."])


def test_a_batch_of_unreadable_images_is_left_out(coloured_folder: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        for i in range(4):
            (coloured_folder / split / name / f"{i}.png").write_bytes(b"no image")
    settings = {"ks": (1,), "resize": 16, "crop": 16, "encode_batch": 2}
    seen = []
    result = run(MeanColour(8), coloured_folder, **settings, progress=lambda *report: seen.append(report))
    assert [result.settings[name] for name in ("unreadable", "train_images", "test_images")] == [12, 4, 4]
    assert list(result.per_image) == [f"a/{i}.png" for i in range(4)]
    assert [done for what, done, _ in seen if what == "train"] == [2, 4, 6, 8, 10, 12]
    for path in (coloured_folder / "val" / "a").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image can be read \(8 tried\), e\.g\. cannot read .*val/a/0\.png"):
        run(MeanColour(8), coloured_folder, **settings)


@pytest.fixture
def coloured_folder(tmp_path: Path) -> Path:
    """Classes a, b, c are red, green, blue; the test set has no b."""
    colours = {"a": (250, 20, 20), "b": (20, 250, 20), "c": (20, 20, 250)}
    for split, classes in [("train", "abc"), ("val", "ac")]:
        for name in classes:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((20, 24, 3), colours[name], np.uint8) - i).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_evaluate_a_folder(coloured_folder: Path) -> None:
    seen = []
    result = run(
        MeanColour(8),
        coloured_folder,
        ks=(1, 3, 100),
        resize=20,
        crop=16,
        encode_batch=5,
        progress=lambda *report: seen.append(report),
    )
    assert result.metrics == {"top-1 k=1": 1.0, "top-5 k=1": 1.0, "top-1 k=3": 1.0, "top-5 k=3": 1.0}
    assert result.settings["ks"] == [1, 3]
    assert seen == [("train", 5, 12), ("train", 10, 12), ("train", 12, 12), ("test", 5, 8), ("test", 8, 8)]


def test_evaluate_errors(coloured_folder: Path) -> None:
    small = {"resize": 16, "crop": 16}
    with pytest.raises(ValueError, match="encode_batch is 0; use a number above 0"):
        run(MeanColour(8), coloured_folder, encode_batch=0, **small)
    (coloured_folder / "val" / "a").rename(coloured_folder / "val" / "zebra")
    with pytest.raises(ValueError, match="'zebra'"):
        run(MeanColour(8), coloured_folder, **small)
    with pytest.raises(ValueError, match="no train/ and val/"):
        run(MeanColour(8), coloured_folder / "train", **small)


@pytest.mark.slow
def test_cifar_is_above_chance(data_dir: Path) -> None:
    """10 classes, 300 + 100 photographs: plain pixels are worth more than a guess, and less than half right."""
    result = run(RawPatch(32), data_dir / "cifar10_mini", ks=(10,), resize=32, crop=32)
    assert 0.12 < result.metrics["top-1 k=10"] < 0.5
