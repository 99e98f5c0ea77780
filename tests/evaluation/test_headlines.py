"""Every evaluation has a metric that a table would quote, found by preference."""

from __future__ import annotations

import pytest

from selfpatch.evaluation.headlines import HEADLINES, headline_of
from selfpatch.evaluation.registry import EVALUATIONS
from selfpatch.evaluation.result import Result


def test_every_evaluation_has_a_headline() -> None:
    assert HEADLINES.keys() == EVALUATIONS.keys()


@pytest.mark.parametrize(
    ("name", "metrics", "expected"),
    [
        ("knn", ["top-1 k=10", "top-5 k=10", "top-1 k=20"], ("top-1 k=20", True)),
        ("knn", ["top-5 k=10", "top-1 k=10"], ("top-1 k=10", True)),
        ("retrieval", ["mAP easy", "mAP hard"], ("mAP hard", True)),
        ("depth", ["a1", "rmse_log", "rmse"], ("rmse", False)),
        ("segment", ["aAcc", "mIoU", "mIoU baseline"], ("mIoU", True)),
        ("davis", ["G", "J-seen", "J&F-Mean"], ("G", True)),
        ("davis", ["J-seen", "J&F-Mean"], ("J&F-Mean", True)),
        ("segment", ["aAcc"], None),
    ],
)
def test_the_headline_of_a_result(name: str, metrics: list[str], expected: tuple[str, bool] | None) -> None:
    assert headline_of(Result(name, dict.fromkeys(metrics, 0.5))) == expected
