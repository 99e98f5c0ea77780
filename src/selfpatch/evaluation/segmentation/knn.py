"""Segmentation by retrieval: patches take the labels of the training patches that resemble them.

Source: Balazevic et al., "Towards In-Context Scene Understanding" (arXiv 2306.01667); k, temperature and which patches
are remembered as in its open re-implementation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.result import Progress, Provenance, Result
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.inference import classes_at
from selfpatch.evaluation.segmentation.patches import grid_of, soft_labels, whole_features
from selfpatch.evaluation.segmentation.scoring import check_at_least, open_splits, score_images

MAX_COSINES = 2**24
"""That are held at once: 64 MB."""
BYTES_OF_A_COSINE = 8
"""Four of its own, and as many for what is made of it."""
QUERIES = 1024
"""That are looked up at once: the memory is read once for so many."""


class Memory:
    """Labelled patches to look up::

        for each patch q:
            nearest = the k patches m of the memory with the largest cosine(q, m)
            votes[q] = sum over nearest of softmax(cosine(q, m) / temperature) * label[m]

    Args:
        features: [M, D] of norm 1; kept as they are, for a copy could double what the whole takes.
        labels: [M, C] shares of the classes.
        k: patches that vote.
        temperature: of the softmax.
        max_cosines: that may be held at once, and so many shares of the labels of those that vote.

    Raises:
        ValueError: k is not between 1 and M.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, *, k: int, temperature: float, max_cosines: int = MAX_COSINES
    ) -> None:
        if not 1 <= k <= len(features):
            raise ValueError(f"k is {k} for {len(features)} remembered patches; use 1 to {len(features)}")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; use a number above 0, e.g. 0.02")
        self.features, self.labels = features, labels
        self.k, self.temperature, self.max_cosines = k, temperature, max_cosines

    def votes(self, queries: Tensor) -> Tensor:
        """[n, D] of any norm -> [n, C]. The [n, M] cosines are made a block at a time, of queries and of memory both,
        with the best k so far carried along."""
        rows = max(1, min(QUERIES, self.max_cosines // (self.k * self.labels.shape[1])))
        return torch.cat([self._votes(part) for part in F.normalize(queries, dim=1).split(rows)])

    def _votes(self, queries: Tensor) -> Tensor:
        columns = max(self.k, self.max_cosines // len(queries))
        cosine = queries.new_empty(len(queries), 0)
        index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for first in range(0, len(self.features), columns):
            block = queries @ self.features[first : first + columns].T
            best, places = block.topk(min(self.k, block.shape[1]), dim=1)
            cosine, index = torch.cat([cosine, best], 1), torch.cat([index, places + first], 1)
            cosine, kept = cosine.topk(min(self.k, cosine.shape[1]), dim=1)
            index = index.gather(1, kept)
        weight = (cosine / self.temperature).softmax(1)
        return torch.einsum("nk,nkc->nc", weight, self.labels[index])


def remembered(labels: Tensor, count: int, draws: Tensor) -> Tensor:
    """The patches of one image that are remembered, rare classes first::

        score[patch] = draw[patch] * sum over the patch's classes of the patches that hold the class
        the `count` lowest scores are kept; patches without a label never are

    Args:
        labels: [N, C] shares.
        count: at most so many.
        draws: [N] even in [0, 1).

    Returns:
        [n] int64 places in ascending order.
    """
    held = (labels > 0).float()
    score = draws * (held @ held.sum(0))
    score[held.sum(1) == 0] = torch.inf
    chosen = score.argsort(stable=True)[: min(count, int((score < torch.inf).sum()))]
    return chosen.sort().values


def build_memory(
    encoder: Encoder,
    train: SegmentationSet,
    *,
    resolution: int,
    memory_patches: int,
    seed: int,
    unit: bool = True,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Features [M, D] and labels [M, C] of at most `memory_patches` patches, as many of each image.

    Args:
        unit: give the features a norm of 1.

    Raises:
        ValueError: fewer patches than images, or no patch has a label.
    """
    budget = memory_patches // len(train)
    if budget < 1:
        raise ValueError(
            f"memory_patches is {memory_patches} for {len(train)} training images; use one an image or more"
        )
    grids = (grid_of(*train.size(i), resolution, encoder.patch_size) for i in range(len(train)))
    room = sum(min(budget, h * w) for h, w in grids)
    features = torch.empty(room, encoder.dim, device=encoder.device)
    labels = torch.empty(room, len(train.classes), device=encoder.device)
    filled = 0
    for i in range(len(train)):
        image, label = train.read(i)
        of_image = whole_features(encoder, image, resolution)
        h, w, _ = of_image.shape
        soft = soft_labels(label, (h, w), encoder.patch_size, len(train.classes)).flatten(0, 1)
        draws = torch.from_numpy(generator(seed, 0, i, 0).random(h * w))
        kept = remembered(soft, budget, draws.float())
        rows = slice(filled, filled + len(kept))
        of_kept = of_image.flatten(0, 1)[kept.to(of_image.device)]
        features[rows] = F.normalize(of_kept, dim=1) if unit else of_kept
        labels[rows] = soft[kept].to(labels.device)
        filled += len(kept)
        if progress is not None:
            progress("memory", i + 1, len(train))
    if not filled:
        raise ValueError(f"all labels of {train.labels[0].parent} are void; there is nothing to remember")
    return features[:filled], labels[:filled]  # patches without a label leave room; views, no copies


def evaluate_knn(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    kind: str | None = None,
    train_split: str = "train",
    test_split: str = "val",
    limit: int | None = None,
    k: int = 30,
    temperature: float = 0.02,
    memory_patches: int = 1_000_000,
    resolution: int = 512,
    max_memory: int = 128,
    seed: int = 0,
    max_pictures: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """k-NN segmentation; the settings are those of `segment.evaluate`.

    Args:
        max_memory: MB that the cosines of patches, and then the logits of an image, may take at once; speed and memory
            only. Beside them there are the remembered patches, once, and the encoder's own memory.
    """
    check_at_least(1, k=k, memory_patches=memory_patches, resolution=resolution, max_memory=max_memory)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; use a number above 0, e.g. 0.02")
    at_once = max_memory * 2**20 // BYTES_OF_A_COSINE
    train, test = open_splits(data, kind, train_split, test_split, limit)
    features, labels = build_memory(
        encoder, train, resolution=resolution, memory_patches=memory_patches, seed=seed, progress=progress
    )
    memory = Memory(features, labels, k=k, temperature=temperature, max_cosines=at_once)

    def predict(image: Image.Image) -> Tensor:
        queries = whole_features(encoder, image, resolution)
        votes = memory.votes(queries.flatten(0, 1)).unflatten(0, queries.shape[:2])
        return classes_at(votes.permute(2, 0, 1)[None], (image.height, image.width), max_logits=at_once)

    scored = score_images(test, predict, out=out, max_pictures=max_pictures, progress=progress)
    settings: dict[str, Any] = {
        "method": "knn",
        "data": str(data),
        "kind": test.kind,
        "train_split": train_split,
        "test_split": test_split,
    }
    settings |= {"k": k, "temperature": temperature, "memory_patches": memory_patches, "resolution": resolution}
    settings |= {"seed": seed, "train_images": len(train), "test_images": len(test), "remembered": len(features)}
    return scored.result(test.classes, settings, weights)
