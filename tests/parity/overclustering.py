"""Replay of clusters matched to classes: by precision, by IoU, and one to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from selfpatch.evaluation.segmentation.config import Matching
from selfpatch.evaluation.segmentation.matching import classes_of_clusters
from selfpatch.evaluation.segmentation.metrics import Scores, confusion
from tests.parity.check import Check, compare

EXACT = 1e-9
MATCHINGS: dict[str, tuple[Matching, str]] = {
    "many_to_one_precision": ("precision", "clusters"),
    "many_to_one_iou": ("iou", "clusters"),
    "hungarian": ("one_to_one_iou", "hungarian.clusters"),
}
"""Recorded result -> our matching, and the tensor of clusters."""


def replay_overclustering(bundle: Path) -> Iterator[Check]:
    """Compare the IoU of each class, their mean, and the share of clusters on the background."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    num_classes = expected["num_classes"]
    truth = t["classes"].long()
    for name, (matching, tensor) in MATCHINGS.items():
        clusters = t[tensor].long()
        num_clusters = num_classes if tensor != "clusters" else expected["num_clusters"]
        counts = confusion(clusters, truth, num_classes, num_clusters).numpy()
        class_of = torch.from_numpy(classes_of_clusters(counts, matching))
        scores = Scores.of(confusion(class_of[clusters], truth, num_classes), absent_as_zero=True)
        wanted = expected[name]
        yield compare(f"{name}: IoU", np.nan_to_num(scores.iou), wanted["iou_per_class"], EXACT)
        yield compare(f"{name}: mIoU", scores.miou, wanted["miou"], EXACT)
        share = (class_of == 0).double().mean()
        yield compare(f"{name}: clusters on the background", share, wanted["share_of_clusters_on_background"], EXACT)
