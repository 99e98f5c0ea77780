"""Replay of the official DAVIS-2017 scores of given masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from tests.parity.check import Check, compare


def replay_davis_metric(bundle: Path) -> Iterator[Check]:
    for name, expected in json.loads((bundle / "expected.json").read_text()).items():
        result = evaluate(None, bundle / "DAVIS", DAVISConfig(results=str(bundle / "results" / name)))
        for metric, value in expected["global_means"].items():
            yield compare(f"{name} {metric}", result.metrics[metric], value, 1e-6)
        for letter in ("J", "F"):
            got = {f"{row['sequence']}_{row['object']}": row[f"{letter}-Mean"] for row in result.rows}
            for key, value in expected[f"{letter}_per_object"].items():
                # relative to 1, the scale of a score
                yield Check(f"{name} {letter} of {key}", abs(float(got[key]) - value), 1e-6)
