"""Weighted k-NN against released numbers, a plain loop, and a real folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from selfpatch.evaluation.baselines import MeanColour, RawPatch
from selfpatch.evaluation.classification import knn as knn
from selfpatch.evaluation.result import Provenance, Result
from tests.helpers.largest_tensor import LargestTensor


def test_released_numbers(golden_dir: Path) -> None:
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    train, train_labels, test, labels = (tensors[f"knn.{n}"] for n in ("train", "train_labels", "test", "test_labels"))
    for k, (top1, top5) in json.loads((golden_dir / "pieces" / "expected.json").read_text())["knn"].items():
        votes = knn.knn_predict(train, train_labels, test, k=int(k), num_classes=int(train_labels.max()) + 1)
        hits = votes.argsort(dim=1, descending=True, stable=True) == labels[:, None]
        assert hits[:, 0].float().mean().item() * 100 == pytest.approx(top1)
        assert hits[:, :5].any(1).float().mean().item() * 100 == pytest.approx(top5)


def test_votes_equal_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_COSINES", 100)  # several chunks
    torch.manual_seed(0)
    train, test, labels = torch.randn(40, 5), torch.randn(7, 5), torch.randint(0, 4, (40,))
    votes = knn.knn_predict(train, labels, test, k=6, temperature=0.2, num_classes=4)
    for i, query in enumerate(test):
        cosine = [float(torch.cosine_similarity(query, other, dim=0)) for other in train]
        expected = [0.0] * 4
        for j in sorted(range(40), key=lambda j: -cosine[j])[:6]:
            expected[int(labels[j])] += math.exp((cosine[j] - max(cosine)) / 0.2)
        torch.testing.assert_close(votes[i], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_leave_one_out_never_asks_itself() -> None:
    """Two twins of one class, two of the other, and one that stands among the wrong ones."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    assert knn.leave_one_out(features, labels, k=1) == pytest.approx(4 / 5)
    assert knn.leave_one_out(torch.eye(3), torch.tensor([0, 1, 2]), k=1) == 0.0


def test_leave_one_out_equals_prediction_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_COSINES", 60)
    torch.manual_seed(0)
    features, labels = torch.randn(30, 6), torch.randint(0, 3, (30,))
    right = 0
    for i in range(30):
        rest = torch.arange(30) != i
        votes = knn.knn_predict(features[rest], labels[rest], features[i : i + 1], k=5, num_classes=3)
        right += int(votes.argmax() == labels[i])
    assert knn.leave_one_out(features, labels, k=5) == pytest.approx(right / 30)


def test_cosines_and_votes_that_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 features with 100 others and 90 classes: never all cosines, nor the votes of all."""
    monkeypatch.setattr(knn, "MAX_COSINES", 400)
    torch.manual_seed(0)
    features, labels = torch.randn(100, 2), torch.randint(0, 90, (100,))
    with LargestTensor() as largest:
        knn.leave_one_out(features, labels, k=3)
        knn.knn_predict(features, labels % 4, features, k=3, num_classes=4)
    assert largest.elements == 400


def test_evaluation_holds_the_votes_of_some(coloured_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"ks": (1, 5), "resize": 16, "crop": 16}
    at_once = knn.evaluate(MeanColour(8), coloured_folder, **settings)
    voters, votes = [], knn._votes

    def counted(cosine: torch.Tensor, *others) -> torch.Tensor:
        voters.append(len(cosine))
        return votes(cosine, *others)

    monkeypatch.setattr(knn, "MAX_COSINES", 9)
    monkeypatch.setattr(knn, "_votes", counted)
    assert knn.evaluate(MeanColour(8), coloured_folder, **settings) == at_once
    assert voters == 2 * [3, 3, 2]  # of 3 classes


@pytest.mark.parametrize("k", [0, 41])
def test_bad_k(k: int) -> None:
    features, labels = torch.randn(40, 5), torch.zeros(40, dtype=torch.long)
    with pytest.raises(ValueError, match=f"k is {k} for 40"):
        knn.knn_predict(features, labels, features, k=k, num_classes=1)
    with pytest.raises(ValueError, match=f"k is {max(k, 0)}"):
        knn.leave_one_out(features, labels, k)


def test_a_low_temperature_is_the_nearest_neighbour() -> None:
    train, labels = torch.eye(3), torch.tensor([0, 1, 1])
    votes = knn.knn_predict(train, labels, torch.tensor([[3.0, 2.0, 1.0]]), k=3, temperature=1e-4, num_classes=2)
    assert votes.tolist() == [[1.0, 0.0]]
    assert knn.leave_one_out(torch.randn(6, 4), torch.zeros(6, dtype=torch.long), k=5, temperature=1e-4) == 1


@pytest.mark.parametrize("temperature", [0.0, -0.07, math.nan])
def test_bad_temperature(coloured_folder: Path, temperature: float) -> None:
    features, labels = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    for run in (
        lambda: knn.knn_predict(features, labels, features, k=1, temperature=temperature, num_classes=1),
        lambda: knn.leave_one_out(features, labels, 1, temperature=temperature),
        lambda: knn.evaluate(MeanColour(8), coloured_folder, temperature=temperature),
    ):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; use a number above 0"):
            run()


def test_unreadable_images_are_counted_and_named(coloured_folder: Path) -> None:
    (coloured_folder / "train" / "b" / "1.png").write_bytes(b"no image")
    (coloured_folder / "val" / "c" / "2.png").write_bytes(b"no image")
    result = knn.evaluate(MeanColour(8), coloured_folder, ks=(1,), resize=16, crop=16)
    assert [result.settings[name] for name in ("unreadable", "train_images", "test_images")] == [2, 11, 7]
    assert result.notes == ["2 images could not be read, left out: train/b/1.png, val/c/2.png"]
    assert "train/b/1.png" in str(result.table().caption)
    with pytest.raises(ValueError, match="only 11 training images can be read"):
        knn.evaluate(MeanColour(8), coloured_folder, ks=(12,), resize=16, crop=16)


def test_a_batch_of_unreadable_images_is_left_out(coloured_folder: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        for i in range(4):
            (coloured_folder / split / name / f"{i}.png").write_bytes(b"no image")
    settings = {"ks": (1,), "resize": 16, "crop": 16, "encode_batch": 2}
    seen = []
    result = knn.evaluate(MeanColour(8), coloured_folder, **settings, progress=lambda *report: seen.append(report))
    assert [result.settings[name] for name in ("unreadable", "train_images", "test_images")] == [12, 4, 4]
    assert list(result.per_image) == [f"a/{i}.png" for i in range(4)]
    assert [done for what, done, _ in seen if what == "train"] == [2, 4, 6, 8, 10, 12]
    for path in (coloured_folder / "val" / "a").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of 8 images can be read, e\.g\. cannot read .*val/a/0\.png"):
        knn.evaluate(MeanColour(8), coloured_folder, **settings)


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


def test_evaluate_a_folder(coloured_folder: Path, tmp_path: Path) -> None:
    seen = []
    result = knn.evaluate(
        MeanColour(8),
        coloured_folder,
        out=tmp_path / "out",
        ks=(1, 3, 100),
        resize=20,
        crop=16,
        encode_batch=5,
        weights=Provenance("none"),
        progress=lambda *report: seen.append(report),
    )
    assert result.metrics == {"top-1 k=1": 1.0, "top-5 k=1": 1.0, "top-1 k=3": 1.0, "top-5 k=3": 1.0}
    assert result.settings["ks"] == [1, 3]
    assert seen == [("train", 5, 12), ("train", 10, 12), ("train", 12, 12), ("test", 5, 8), ("test", 8, 8)]
    assert Result.load(tmp_path / "out" / "result.json").metrics == result.metrics


def test_evaluate_errors(coloured_folder: Path) -> None:
    small = {"resize": 16, "crop": 16}
    with pytest.raises(ValueError, match="encode_batch is 0; use 1 or more"):
        knn.evaluate(MeanColour(8), coloured_folder, encode_batch=0, **small)
    with pytest.raises(ValueError, match="12 training images"):
        knn.evaluate(MeanColour(8), coloured_folder, ks=(13,), **small)
    (coloured_folder / "val" / "a").rename(coloured_folder / "val" / "zebra")
    with pytest.raises(ValueError, match="'zebra'"):
        knn.evaluate(MeanColour(8), coloured_folder, **small)
    with pytest.raises(ValueError, match="no train/ and val/"):
        knn.evaluate(MeanColour(8), coloured_folder / "train", **small)


@pytest.mark.slow
def test_cifar_is_above_chance(data_dir: Path) -> None:
    """10 classes, 300 + 100 photographs: plain pixels are worth more than a guess, and less than half right."""
    result = knn.evaluate(RawPatch(32), data_dir / "cifar10_mini", ks=(10,), resize=32, crop=32)
    assert 0.12 < result.metrics["top-1 k=10"] < 0.5
