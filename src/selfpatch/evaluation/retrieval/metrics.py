"""Average precision and precision at k of ranked images (revisited Oxford and Paris, arXiv 1803.11285)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.retrieval.dataset import Query

Level = Literal["easy", "medium", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


class QueryScores(NamedTuple):
    """Average precision of one query, and its precision at each k."""

    average_precision: float
    precisions: tuple[float, ...]


def rank_database(queries: Tensor, database: Tensor) -> Tensor:
    """Return the numbers of the database's images by falling cosine, int64 [Q, n], of features [Q, D] and [n, D]."""
    cosines = F.normalize(queries.float(), dim=1) @ F.normalize(database.float(), dim=1).T
    return cosines.argsort(dim=1, descending=True, stable=True)


def positives_and_ignored(query: Query, level: Level) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that a level looks for, and those that it removes from the ranking.

    easy: easy ones, without hard and junk; medium: easy and hard ones, without junk; hard: hard ones, without easy and
    junk.
    """
    if level == "medium":
        return np.concatenate([query.easy, query.hard]), query.junk
    wanted, other = (query.easy, query.hard) if level == "easy" else (query.hard, query.easy)
    return wanted, np.concatenate([other, query.junk])


def score_query(ranking: np.ndarray, query: Query, level: Level, ks: Sequence[int]) -> QueryScores | None:
    """Return the scores of a ranking, int64 [n], or None if the level has no positive for the query.

    ::

        ranking = those that are not ignored
        for the j-th positive, found at rank r (both counted from 0):
            AP += (j / r, or 1 if r is 0, + (j + 1) / (r + 1)) / 2 / positives
        precision at k = share of positives in the first min(k, rank of the last positive + 1)
    """
    positives, ignored = positives_and_ignored(query, level)
    if not len(positives):
        return None
    kept = ranking[~np.isin(ranking, ignored)]
    ranks = np.flatnonzero(np.isin(kept, positives))
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    average_precision = ((before + (found + 1) / (ranks + 1)) / 2).mean()
    depths = [min(k, int(ranks[-1]) + 1) for k in ks]
    return QueryScores(float(average_precision), tuple(float((ranks < depth).sum() / depth) for depth in depths))


def score_levels(
    rankings: Tensor, queries: Sequence[Query], ks: Sequence[int]
) -> dict[Level, list[QueryScores | None]]:
    """Return the scores of each query by level, of rankings int64 [Q, n]."""
    ranked = rankings.cpu().numpy()
    return {
        level: [score_query(ranking, query, level, ks) for ranking, query in zip(ranked, queries, strict=True)]
        for level in LEVELS
    }


def mean_scores(scores: Sequence[QueryScores | None]) -> QueryScores | None:
    """Return the means over the queries that have positives (mAP and mP@k), or None if none has."""
    counted = [score for score in scores if score is not None]
    if not counted:
        return None
    precisions = np.mean([score.precisions for score in counted], axis=0)
    return QueryScores(float(np.mean([score.average_precision for score in counted])), tuple(precisions.tolist()))


def ranked_marks(ranking: Tensor, query: Query, count: int) -> list[tuple[int, bool]]:
    """Return the first images of a ranking [n] at the medium level, and whether each is a positive."""
    positives, ignored = (torch.from_numpy(part) for part in positives_and_ignored(query, "medium"))
    kept = ranking[~torch.isin(ranking, ignored)][:count]
    return list(zip(kept.tolist(), torch.isin(kept, positives).tolist(), strict=True))
