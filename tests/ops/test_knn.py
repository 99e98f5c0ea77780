"""Weighted k-NN votes against released numbers and a plain loop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from selfpatch.ops import knn
from tests.helpers.largest_tensor import LargestTensor


def predict(
    train: Tensor, labels: Tensor, test: Tensor, *, k: int, num_classes: int, temperature: float = 0.07
) -> Tensor:
    """Return the votes [m, K] of the k nearest training features."""
    similarity, index = knn.nearest_neighbours(test, F.normalize(train, dim=1), k)
    return knn.class_votes(similarity, labels[index], temperature=temperature, num_classes=num_classes)


def test_released_numbers(golden_dir: Path) -> None:
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    train, train_labels, test, labels = (tensors[f"knn.{n}"] for n in ("train", "train_labels", "test", "test_labels"))
    for k, (top1, top5) in json.loads((golden_dir / "pieces" / "expected.json").read_text())["knn"].items():
        votes = predict(train, train_labels, test, k=int(k), num_classes=int(train_labels.max()) + 1)
        hits = votes.argsort(dim=1, descending=True, stable=True) == labels[:, None]
        assert hits[:, 0].float().mean().item() * 100 == pytest.approx(top1)
        assert hits[:, :5].any(1).float().mean().item() * 100 == pytest.approx(top5)


def test_votes_equal_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 100)  # several chunks
    torch.manual_seed(0)
    train, test, labels = torch.randn(40, 5), torch.randn(7, 5), torch.randint(0, 4, (40,))
    votes = predict(train, labels, test, k=6, temperature=0.2, num_classes=4)
    for i, query in enumerate(test):
        cosine = [float(torch.cosine_similarity(query, other, dim=0)) for other in train]
        expected = [0.0] * 4
        for j in sorted(range(40), key=lambda j: -cosine[j])[:6]:
            expected[int(labels[j])] += math.exp((cosine[j] - max(cosine)) / 0.2)
        torch.testing.assert_close(votes[i], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_leave_one_out_never_counts_the_feature_itself() -> None:
    """Two twins of one class, two of the other, and one that stands among the wrong ones."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    assert knn.leave_one_out(features, labels, k=1) == pytest.approx(4 / 5)
    assert knn.leave_one_out(torch.eye(3), torch.tensor([0, 1, 2]), k=1) == 0.0


def test_leave_one_out_equals_prediction_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 60)
    torch.manual_seed(0)
    features, labels = torch.randn(30, 6), torch.randint(0, 3, (30,))
    right = 0
    for i in range(30):
        rest = torch.arange(30) != i
        votes = predict(features[rest], labels[rest], features[i : i + 1], k=5, num_classes=3)
        right += int(votes.argmax() == labels[i])
    assert knn.leave_one_out(features, labels, k=5) == pytest.approx(right / 30)


def test_similarities_and_votes_never_exist_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 features with 100 others and 90 classes: never all cosines, nor the votes of all."""
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 400)
    torch.manual_seed(0)
    features, labels = torch.randn(100, 2), torch.randint(0, 90, (100,))
    with LargestTensor() as largest:
        knn.leave_one_out(features, labels, k=3)
        predict(features, labels % 4, features, k=3, num_classes=4)
    assert largest.elements == 400


@pytest.mark.parametrize("k", [0, 40])
def test_bad_k(k: int) -> None:
    features, labels = torch.randn(40, 5), torch.zeros(40, dtype=torch.long)
    with pytest.raises(ValueError, match=f"k is {k} for 40 features"):
        knn.leave_one_out(features, labels, k)


def test_a_low_temperature_is_the_nearest_neighbour() -> None:
    train, labels = torch.eye(3), torch.tensor([0, 1, 1])
    votes = predict(train, labels, torch.tensor([[3.0, 2.0, 1.0]]), k=3, temperature=1e-4, num_classes=2)
    assert votes.tolist() == [[1.0, 0.0]]
    assert knn.leave_one_out(torch.randn(6, 4), torch.zeros(6, dtype=torch.long), k=5, temperature=1e-4) == 1


@pytest.mark.parametrize("temperature", [0.0, -0.07, math.nan])
def test_bad_temperature(temperature: float) -> None:
    features, labels = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    for run in (
        lambda: predict(features, labels, features, k=1, temperature=temperature, num_classes=1),
        lambda: knn.leave_one_out(features, labels, 1, temperature=temperature),
    ):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; use a number above 0"):
            run()


def test_products_in_blocks_of_keys_find_the_neighbours_of_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "KEYS_AT_ONCE", 16)  # the last of four blocks is smaller
    generator = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (20, 50))
    similarity, index = knn.nearest_neighbours(queries, keys, 7)
    expected = (queries @ keys.T).topk(7, dim=1)
    torch.testing.assert_close(similarity, expected.values)
    assert torch.equal(index, expected.indices)
