"""The built-in suites on small copies of all their data sets: every evaluation runs, and its number can be quoted."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from selfpatch.api.encoder import without_values
from selfpatch.api.evaluate import check
from selfpatch.evaluation.headlines import headline_of
from selfpatch.experiments.entries import BUILT_IN, read_entry
from selfpatch.experiments.suite import evaluate_suite
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.released_forms import random_backbone
from tests.helpers.suite_data import write_classification, write_dense, write_papers

WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "dense": write_dense, "classification": write_classification, "papers": write_papers,
}  # fmt: skip
FEW_IMAGES: Mapping[str, Mapping[str, Any]] = {
    "knn": {"ks": [1, 2]},
    "segment linear": {"batch_size": 2},
    "segment fpn": {"batch_size": 2},
    "segment upernet": {"batch_size": 2},
    "segment finetune": {"batch_size": 2},
    "depth": {"batch_size": 1},
    "detect": {"batch_size": 2},
}
"""Settings that the few images of the copies need; all others are those of the suites."""
CROPS: Mapping[str, Any] = {"resize": 16, "crop": 16}
SHORT: Mapping[str, Mapping[str, Any]] = {
    "knn": CROPS,
    "linear": {**CROPS, "epochs": 1, "workers": 0},
    "segment knn": {"resolution": 32},
    "segment kmeans": {"resolution": 48, "seeds": 2, "restarts": 1, "iterations": 5, "components": 4},
    "segment kmeans overclustering": {"num_clusters": 30},
    "segment linear": {"crop": 32, "steps": 2},
    "depth": {"crop": [32, 32], "steps": 2, "workers": 0},
    "davis": {"resolution": 48},
    "correspond": {"resolution": 64},
    "navi": {"resolution": 64, "num_matches": 20},
}
"""Settings that make the evaluations take less than a second each."""


def items(suite: str, *changes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Return the list that a built-in suite holds; changes are by evaluation, method and preset."""
    listed = yaml.safe_load((BUILT_IN / f"{suite}.yaml").read_text())
    for item in listed:
        ((name, values),) = item.items()
        method = f"{name} {values.get('method', '')}".strip()
        for key in (method, f"{method} {values.get('preset')}"):
            for change in changes:
                values.update(change.get(key, {}))
    return listed


def vit(patch_size: int) -> BranchEncoder:
    shape = ViTConfig(embed_dim=24, depth=4, num_heads=3, patch_size=patch_size, grid=2)
    return BranchEncoder(random_backbone(shape, seed=5), None)


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("suite", WRITERS)
def test_no_evaluation_is_refused(tmp_path: Path, suite: str, patch_size: int) -> None:
    """All settings are those of the suite but the sizes of batches."""
    root, encoder = WRITERS[suite](tmp_path), without_values(vit(patch_size))
    for number, item in enumerate(items(suite, FEW_IMAGES), start=1):
        entry = read_entry(number, item, suite)
        lists = {"image_list": str(root / name)} if (name := entry.settings.get("image_list")) else {}
        check(entry.evaluation, encoder, None, root / entry.data, **{**entry.settings, **lists})


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["dense", "classification"])
def test_every_number_reaches_the_scorecard(tmp_path: Path, suite: str) -> None:
    root, out = WRITERS[suite](tmp_path / "data"), tmp_path / "out"
    listed = items(suite, FEW_IMAGES, SHORT)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(listed))
    outcomes = evaluate_suite(tmp_path / "suite.yaml", vit(8), out, device="cpu", data_root=root)
    assert [(outcome.error, outcome.was_refused) for outcome in outcomes] == [(None, False)] * len(listed)
    rows = (out / "scorecard.csv").read_text().splitlines()
    with (out / "scorecard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["benchmark"] for row in rows}) == len(listed)
    assert not any(row["left out"] for row in rows)
    for outcome in outcomes:
        assert outcome.result is not None
        headline = headline_of(outcome.result)
        assert headline is not None
        assert math.isfinite(outcome.result.metrics[headline[0]]), outcome.entry
        for picture in outcome.result.pictures:
            with Image.open(out / outcome.entry.folder / picture) as opened:
                opened.load()
