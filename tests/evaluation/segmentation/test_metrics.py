"""mIoU and its kin: against torchmetrics, against a count by hand, with void and absent classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.metrics import Scores, confusion


def test_scores_equal_those_computed_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [1, 1, IGNORE, IGNORE]])
    prediction = torch.tensor([[0, 1, 1, 1], [1, 2, 0, 1]])
    counts = confusion(prediction, truth, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = Scores.of(counts)
    np.testing.assert_allclose(scores.iou, [1 / 2, 3 / 5, 0, np.nan])  # 2 is predicted, 3 is nowhere
    np.testing.assert_allclose(scores.acc, [1 / 2, 3 / 4, np.nan, np.nan])
    assert scores.miou == pytest.approx((1 / 2 + 3 / 5 + 0) / 3)
    assert scores.macc == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert scores.aacc == pytest.approx(4 / 6)
    assert [row["IoU"] for row in scores.rows("abcd")] == [0.5, 0.6, 0.0]


def test_a_class_that_only_the_prediction_has_keeps_its_row() -> None:
    rows = Scores.of(confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)).rows("abc")
    assert rows == [{"class": "a", "IoU": 0.5, "Acc": 0.5}, {"class": "b", "IoU": 0.0, "Acc": "-"}]


@pytest.mark.parametrize("seed", range(5))
def test_miou_equals_torchmetrics(seed: int) -> None:
    """Class 8 is in neither truth nor prediction: both leave it out of the mean."""
    classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.manual_seed(seed)
    truth = torch.randint(0, 8, (3, 40, 50), generator=generator)
    prediction = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.flip(0))
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    expected = {
        "miou": classification.MulticlassJaccardIndex(9, ignore_index=IGNORE, average="macro"),
        "aacc": classification.MulticlassAccuracy(9, ignore_index=IGNORE, average="micro"),
    }
    counts = sum(confusion(p, t, 9) for p, t in zip(prediction, truth, strict=True))
    for name, metric in expected.items():
        assert getattr(Scores.of(counts), name) == pytest.approx(float(metric(prediction, truth)), abs=1e-6)


def test_counts_add_up_over_images_and_ignore_void_whatever_is_predicted() -> None:
    truth, prediction = torch.randint(0, 5, (2, 8, 8)), torch.randint(0, 5, (2, 8, 8))
    whole = confusion(prediction, truth, 5)
    assert torch.equal(whole, confusion(prediction[0], truth[0], 5) + confusion(prediction[1], truth[1], 5))
    assert confusion(prediction, torch.full_like(truth, IGNORE), 5).sum() == 0


def test_numpy_and_torch_count_alike() -> None:
    truth, prediction = np.arange(6) % 3, np.array([0, 0, 2, 2, 1, 1])
    assert torch.equal(confusion(prediction, truth, 3), confusion(torch.tensor(prediction), torch.tensor(truth), 3))


def test_scores_without_labels_are_nan() -> None:
    assert np.isnan(Scores.of(torch.zeros(3, 3)).miou)


def test_the_number_of_void_is_no_absent_class() -> None:
    counts = np.zeros((IGNORE + 2, IGNORE + 2))  # as of ImageNet-S, which has more classes than that number
    counts[0, 0] = counts[IGNORE + 1, IGNORE + 1] = 1
    assert Scores.of(counts, absent_as_zero=True).miou == pytest.approx(2 / (IGNORE + 1))
    assert Scores.of(counts[:5, :5], absent_as_zero=True).miou == pytest.approx(1 / 5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="give two of one shape"):
        confusion(torch.zeros(2, 2), torch.zeros(2, 3), 2)
