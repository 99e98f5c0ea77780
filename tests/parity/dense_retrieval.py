"""Replay of segmentation by retrieval: memory of patches, sampling scores, votes, predictions and their mIoU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.inference import classes_at
from selfpatch.evaluation.segmentation.knn import PatchMemory
from selfpatch.evaluation.segmentation.matching import classes_of_clusters
from selfpatch.evaluation.segmentation.metrics import Scores, confusion
from selfpatch.evaluation.segmentation.patches import commonness, soft_labels
from tests.parity.check import TIGHT, Check, compare, compare_exactly


def replay_dense_retrieval(bundle: Path) -> Iterator[Check]:
    """Replay open-hummingbird-eval, as the preset `hummingbird` follows it."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    num_classes, grid = expected["num_classes"], tuple(expected["grid"])
    labels = t["train_labels"].long()
    labels[labels == IGNORE] = expected["train_255_becomes"]
    soft = torch.stack([soft_labels(label, grid, expected["patch"], num_classes) for label in labels.numpy()])
    yield compare("label memory", soft.flatten(0, 2), t["label_memory"], TIGHT)
    scores = torch.stack([commonness(of_image) for of_image in soft.flatten(1, 2)])
    yield compare("sampling scores", scores, t["patch_scores"].flatten(1), TIGHT)
    features = F.normalize(t["train_features"].flatten(0, 1), dim=1)
    memory = PatchMemory(features, soft.flatten(0, 2), k=expected["k"], temperature=expected["beta"])
    votes = memory.votes(t["val_features"].flatten(0, 1)).unflatten(0, t["val_features"].shape[:2])
    yield compare("votes", votes, t["propagated"], TIGHT)
    truth = t["val_labels"]
    maps = votes.unflatten(1, grid).movedim(-1, 1)  # [B, C, h, w]
    predicted = torch.stack([classes_at(scores[None], tuple(truth.shape[1:])) for scores in maps])
    yield compare_exactly("predictions", predicted, t["prediction"].to(predicted.dtype))
    yield from _mious("", predicted, truth, num_classes, expected)
    swapped = torch.tensor([0, 2, 1, *range(3, num_classes)])[predicted.long()]
    yield from _mious("classes 1 and 2 swapped: ", swapped, truth, num_classes, expected["classes_1_and_2_swapped"])


def _mious(title: str, predicted: Tensor, truth: Tensor, classes: int, expected: dict[str, float]) -> Iterator[Check]:
    counts = confusion(predicted, truth, classes)
    matched = torch.from_numpy(classes_of_clusters(counts.numpy(), "one_to_one_iou"))[predicted.long()]
    for name, pixels in (("identity", predicted), ("hungarian_as_released", matched)):
        scores = Scores.of(confusion(pixels, truth, classes), absent_as_zero=True)
        yield compare(f"{title}mIoU, {name}", scores.miou, expected[f"miou_{name}"], 1e-9)
