"""Replay of image retrieval: rankings, average precision and precision at k of the three levels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from selfpatch.evaluation.retrieval.dataset import Query
from selfpatch.evaluation.retrieval.metrics import mean_scores, rank_database, score_levels
from tests.parity.check import Check, compare, compare_exactly

EXACT = 1e-9
KS = (1, 5, 10)


def replay_retrieval(bundle: Path) -> Iterator[Check]:
    """Compare the rankings, and AP, mAP and mP@k of each level."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    rankings = rank_database(t["queries"], t["database"])
    yield compare_exactly("rankings", rankings, t["ranks"].T)
    queries = [
        Query(str(i), Path(), None, *(np.array(truth[kind], np.int64) for kind in ("easy", "hard", "junk")))
        for i, truth in enumerate(expected["gnd"])
    ]
    for level, scores in score_levels(t["ranks"].T, queries, KS).items():
        wanted, mean = expected[level], mean_scores(scores)
        missing = [score is None for score in scores]
        yield Check(f"{level}: queries left out", float(missing != [ap is None for ap in wanted["ap"]]), 0.0)
        aps = [score.average_precision for score in scores if score is not None]
        yield compare(f"{level}: AP", aps, [ap for ap in wanted["ap"] if ap is not None], EXACT)
        assert mean is not None
        yield compare(f"{level}: mAP", mean.average_precision, wanted["map"], EXACT)
        yield compare(f"{level}: mP@k", mean.precisions, wanted["mp@1,5,10"], EXACT)
