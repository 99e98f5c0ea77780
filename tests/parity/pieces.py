"""Replay of single parts of the methods: MoBY and MoCo-v3, label propagation, LOST and k-NN."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.video_segmentation.propagation import to_mask
from selfpatch.ops.knn import class_votes, nearest_neighbours
from selfpatch.ops.propagation import propagate_labels
from tests.parity.check import Check, compare, compare_exactly
from tests.parity.contrastive import replay_moby, replay_moco_v3
from tests.parity.lost import replay_lost


def replay_pieces(bundle: Path) -> Iterator[Check]:
    """Replay every part of a `pieces` bundle that the project has."""
    expected = json.loads((bundle / "expected.json").read_text())
    tensors = load_file(bundle / "tensors.safetensors")
    yield from replay_moby(expected["moby"], tensors)
    yield from replay_moco_v3(expected["mocov3"], tensors)
    yield from _label_propagation(expected["vos"], tensors)
    yield from replay_lost(expected["lost"], tensors)
    yield from _knn(expected["knn"], tensors)


def _label_propagation(settings: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    features, previous = t["vos.features"], settings["n_last_frames"]
    classes = t["vos.soft_labels"].shape[1]
    labels = [F.one_hot(t["vos.first_labels"], classes).movedim(-1, 0).float()]
    for frame in range(1, len(features)):
        context = [0, *range(max(1, frame - previous), frame)]
        soft = propagate_labels(
            features[frame],
            features[context],
            torch.stack([labels[i] for i in context]),
            radius=settings["size_mask_neighborhood"],
            topk=settings["topk"],
            temperature=settings["temperature"],
        )
        yield compare(f"vos soft labels of frame {frame}", soft, t["vos.soft_labels"][frame - 1], 1e-5)
        mask = to_mask(soft, t["vos.masks_x16"].shape[1:])
        yield compare_exactly(f"vos mask of frame {frame}", torch.from_numpy(mask), t["vos.masks_x16"][frame - 1])
        labels.append(soft)


def _knn(expected: dict[str, list[float]], t: dict[str, Tensor]) -> Iterator[Check]:
    train, test = F.normalize(t["knn.train"], dim=1), F.normalize(t["knn.test"], dim=1)
    classes = int(t["knn.train_labels"].max()) + 1
    for k, scores in expected.items():
        similarity, index = nearest_neighbours(test, train, int(k))
        votes = class_votes(similarity, t["knn.train_labels"][index], temperature=0.07, num_classes=classes)
        hits = votes.argsort(1, descending=True) == t["knn.test_labels"][:, None]
        top = [100 * float(hits[:, :n].any(1).float().mean()) for n in (1, 5)]
        yield compare(f"knn top-1 and top-5, k = {k}", torch.tensor(top), torch.tensor(scores), 1e-6)
