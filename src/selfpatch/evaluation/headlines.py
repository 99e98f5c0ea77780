"""The metric of each evaluation that a paper's table would quote, among all that a result holds."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from selfpatch.evaluation.result import Result


class Headline(NamedTuple):
    """A metric to quote."""

    metric: str
    """Pattern of its name; the first metric of a result that fits it is quoted."""
    higher_is_better: bool = True


HEADLINES: dict[str, Sequence[Headline]] = {
    "correspond": [Headline("PCK@0.1 per image"), Headline("PCK@* per image")],
    "davis": [Headline("G"), Headline("J&F-Mean"), Headline("*")],  # G: YouTube-VOS with seen and unseen classes
    "depth": [Headline("rmse", higher_is_better=False)],
    "detect": [Headline("box AP")],
    "discover": [Headline("CorLoc *")],
    "finetune": [Headline("top-1")],
    "knn": [Headline("top-1 k=20"), Headline("top-1 *")],
    "linear": [Headline("top-1")],
    "match": [Headline("matched")],
    "navi": [Headline("recall"), Headline("recall@*")],
    "retrieval": [Headline("mAP hard"), Headline("mAP *")],
    "segment": [Headline("mIoU")],
}
"""Headlines of each evaluation by preference; a result without the first is quoted by the next."""
RADAR = {"depth": "a1"}
"""Metric from 0 to 1, the higher the better, that a radar shows in place of the headline."""


def headline_of(result: Result) -> tuple[str, bool] | None:
    """Return the metric of a result to quote, and whether higher is better; None if it has no metric that fits."""
    for pattern, higher_is_better in HEADLINES.get(result.name, [Headline("*")]):
        for metric in result.metrics:
            if fnmatchcase(metric, pattern):
                return metric, higher_is_better
    return None
