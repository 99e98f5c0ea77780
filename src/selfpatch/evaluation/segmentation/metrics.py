"""Measures of semantic segmentation: mean intersection over union, pixel accuracy, mean class accuracy.

All come from one confusion matrix over all pixels of all images that are not void, as mmsegmentation counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfpatch.evaluation.result import Cell
from selfpatch.evaluation.segmentation.dataset import IGNORE


def confusion(
    prediction: Tensor | np.ndarray, truth: Tensor | np.ndarray, num_classes: int, num_predicted: int | None = None
) -> Tensor:
    """Count the pixels of each (class, predicted class), as [C, P] int64 on the prediction's device.

        for each pixel whose truth is not IGNORE:
            counts[truth, prediction] += 1

    Truth and prediction are class numbers [...]. Predictions may be clusters instead, of which there are
    `num_predicted`; P is C otherwise. Raise ValueError if the shapes differ.
    """
    num_predicted = num_classes if num_predicted is None else num_predicted
    prediction = torch.as_tensor(prediction)
    truth = torch.as_tensor(truth, device=prediction.device)
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the prediction has shape {list(prediction.shape)}, the truth {list(truth.shape)}; give two of one shape"
        )
    cells = num_classes * num_predicted
    pairs = truth.long().mul(num_predicted).add_(prediction).masked_fill_(truth == IGNORE, cells)  # the last is dropped
    return torch.bincount(pairs.flatten(), minlength=cells + 1)[:cells].view(num_classes, num_predicted)


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix.

    Attributes:
        miou: mean of `iou` over the classes that the truth or the prediction has, or over all if `absent_as_zero`.
        aacc: share of correct pixels.
        macc: mean of `acc` over the classes that the truth has.
        iou: [C] float64 intersection over union; nan where neither truth nor prediction has the class.
        acc: [C] float64 share of a class's pixels that are correct; nan where the truth has none.
    """

    miou: float
    aacc: float
    macc: float
    iou: np.ndarray
    acc: np.ndarray

    @classmethod
    def of(cls, counts: Tensor | np.ndarray, *, absent_as_zero: bool = False) -> "Scores":
        """Return the scores of [C, C] counts of (truth, prediction); all are nan where there is no pixel.

        With `absent_as_zero`, classes that neither has count as 0 in `miou`; the number of void is none.
        """
        matrix = torch.as_tensor(counts).cpu().numpy().astype(np.float64)
        correct, of_truth, of_prediction = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
        with np.errstate(invalid="ignore"):  # 0 / 0 is nan, as it should be
            iou = correct / (of_truth + of_prediction - correct)
            acc = correct / of_truth
            aacc = float(correct.sum() / matrix.sum())
        classes = np.arange(len(iou)) != IGNORE  # ImageNet-S has more classes than that number
        miou = _mean(np.nan_to_num(iou)[classes]) if absent_as_zero and matrix.any() else _mean(iou)
        return cls(miou, aacc, _mean(acc), iou, acc)

    def metrics(self) -> dict[str, float]:
        """Return the numbers to quote."""
        return {"mIoU": self.miou, "aAcc": self.aacc, "mAcc": self.macc}

    def rows(self, classes: Sequence[str]) -> list[dict[str, Cell]]:
        """Return one row per class that the truth or the prediction has; `-` marks an undefined accuracy."""
        return [
            {"class": name, "IoU": float(iou), "Acc": "-" if np.isnan(acc) else float(acc)}
            for name, iou, acc in zip(classes, self.iou, self.acc, strict=True)
            if not np.isnan(iou)
        ]


def mean_scores(runs: Sequence[Scores]) -> Scores:
    """Return the mean of the scores of several runs; of a class, over the runs in which they are defined."""
    if len(runs) == 1:
        return runs[0]
    miou, aacc, macc = (float(np.mean([getattr(run, name) for run in runs])) for name in ("miou", "aacc", "macc"))
    iou, acc = (np.ma.masked_invalid([getattr(run, name) for run in runs]).mean(0) for name in ("iou", "acc"))
    return Scores(miou, aacc, macc, iou.filled(np.nan), acc.filled(np.nan))


def constant_prediction(counts: Tensor) -> Tensor:
    """Return the [C, C] counts of predicting the most frequent class everywhere."""
    constant = torch.zeros_like(counts)
    constant[:, counts.sum(1).argmax()] = counts.sum(1)
    return constant


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
