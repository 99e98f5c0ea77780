"""Accuracies of ranked classes."""

from __future__ import annotations

import pytest
import torch

from selfpatch.evaluation.classification import metrics
from selfpatch.evaluation.classification.metrics import top_hits


def test_hits_of_equal_scores_go_by_the_number_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SCORED_AT_ONCE", 2)
    scores = torch.zeros(3, 7)
    scores[2, 6] = 1.0
    hits = top_hits(scores, torch.tensor([0, 5, 6]))
    assert hits.tolist() == [[True, True], [False, False], [True, True]]
