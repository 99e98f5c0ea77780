"""Average precision by plain loops, and what each level counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.evaluation.retrieval.dataset import Query
from selfpatch.evaluation.retrieval.metrics import (
    QueryScores,
    mean_scores,
    rank_database,
    ranked_marks,
    score_levels,
    score_query,
)


def query_of(easy: list[int], hard: list[int], junk: list[int]) -> Query:
    return Query("q", Path("q.jpg"), None, *(np.array(part, np.int64) for part in (easy, hard, junk)))


def plain_scores(ranking: list[int], positives: set[int], ignored: set[int], ks: list[int]) -> QueryScores:
    """The area under precision over recall, by trapezoids, one image after the other."""
    area, found, previous, seen = 0.0, 0, 1.0, 0
    ranks = []
    for image in ranking:
        if image in ignored:
            continue
        seen += 1
        if image in positives:
            previous = found / (seen - 1) if seen > 1 else 1.0
            found += 1
            area += (previous + found / seen) / 2 / len(positives)
            ranks.append(seen)
    precisions = []
    for k in ks:
        depth = min(k, max(ranks))
        precisions.append(sum(rank <= depth for rank in ranks) / depth)
    return QueryScores(area, tuple(precisions))


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranking, images = rng.permutation(30), rng.permutation(30)
    easy, hard, junk = (images[part].tolist() for part in (slice(0, 4), slice(4, 9), slice(9, 15)))
    scores = score_levels(torch.from_numpy(ranking)[None], [query_of(easy, hard, junk)], (1, 5, 10))
    for level, positives, ignored in (
        ("easy", {*easy}, {*hard, *junk}),
        ("medium", {*easy, *hard}, {*junk}),
        ("hard", {*hard}, {*easy, *junk}),
    ):
        (score,) = scores[level]
        expected = plain_scores(ranking.tolist(), positives, ignored, [1, 5, 10])
        assert score is not None
        assert score.average_precision == pytest.approx(expected.average_precision)
        assert score.precisions == pytest.approx(expected.precisions)


def test_a_perfect_ranking_scores_1_and_the_worst_little() -> None:
    query = query_of([0], [1], [2])
    best = score_query(np.array([2, 0, 1, 3, 4]), query, "medium", (1, 2))
    assert best == QueryScores(1.0, (1.0, 1.0))
    worst = score_query(np.array([3, 4, 2, 0, 1]), query, "medium", (1, 2))
    assert worst is not None
    assert worst.average_precision == pytest.approx(((0 / 2 + 1 / 3) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert worst.precisions == (0.0, 0.0)


def test_junk_does_not_count() -> None:
    query = query_of([0], [], [1])
    with_junk_first = score_query(np.array([1, 0, 2]), query, "medium", (1,))
    assert with_junk_first == QueryScores(1.0, (1.0,))


def test_a_level_without_positives_is_left_out() -> None:
    query = query_of([0], [], [])
    assert score_query(np.array([0, 1]), query, "hard", (1,)) is None
    assert mean_scores([None, QueryScores(0.5, (1.0,))]) == QueryScores(0.5, (1.0,))
    assert mean_scores([None]) is None


def test_the_database_is_ranked_by_cosine_not_by_length() -> None:
    database = torch.tensor([[10.0, 10.0], [0.1, 0.0], [-1.0, 0.0]])
    assert rank_database(torch.tensor([[2.0, 0.0]]), database).tolist() == [[1, 0, 2]]


def test_marks_leave_junk_out() -> None:
    assert ranked_marks(torch.tensor([2, 1, 0, 3]), query_of([0], [1], [2]), 2) == [(1, True), (0, True)]
    assert ranked_marks(torch.tensor([3, 0]), query_of([0], [], []), 5) == [(3, False), (0, True)]
