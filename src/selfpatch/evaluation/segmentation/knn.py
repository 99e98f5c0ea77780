"""Segmentation by retrieval: patches take the labels of the training patches that resemble them.

Source: Balazevic et al., "Towards In-Context Scene Understanding" (arXiv 2306.01667), which calls it Hummingbird; k,
temperature, augmentation and the choice of remembered patches follow open-hummingbird-eval, version 2.
"""

from dataclasses import replace

import torch
from torch import Tensor

from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.augmentation import MemoryCrop
from selfpatch.evaluation.segmentation.config import KNNSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.inference import FittedMethod
from selfpatch.evaluation.segmentation.inverted_file import InvertedFile, load_faiss
from selfpatch.evaluation.segmentation.patches import PatchView, fitted_patches, labelled_patches
from selfpatch.ops.knn import check_temperature, nearest_neighbours, soft_class_votes

BYTES_PER_SIMILARITY = 8
"""Bytes per similarity: four for itself, and four for values derived from it."""
RELEASED_STD = {0.225: 0.255}
"""Standard deviation of open-hummingbird-eval in place of ImageNet's, a slip that is part of its numbers."""
MAX_QUERIES = 1024
"""Queries per block; the memory is read once for each block."""


class PatchMemory:
    """Labelled patches to look up.

        for each patch q:
            nearest = the k patches m of the memory with the largest cosine(q, m)
            votes[q] = sum over nearest of softmax(cosine(q, m) / temperature) * label[m]

    Args:
        features: [M, D] of norm 1; kept as they are, because a copy would double the memory.
        labels: [M, C] shares of the classes.
        k: number of patches that vote.
        temperature: temperature of the softmax.
        max_similarities: similarities, and shares of the voters' labels, that exist at once; defaults to 64 MB.
        approximate: search by FAISS, which may miss neighbours, instead of comparing all.

    Raises:
        ValueError: k is not between 1 and M, or the temperature is not above 0.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        k: int,
        temperature: float,
        max_similarities: int = 2**24,
        approximate: bool = False,
    ) -> None:
        if not 1 <= k <= len(features):
            raise ValueError(f"k is {k} for {counted(len(features), 'remembered patch')}; use 1 to {len(features)}")
        check_temperature(temperature)
        self.features, self.labels = features, labels
        self.k, self.temperature, self.max_similarities = k, temperature, max_similarities
        self.inverted_file = InvertedFile(features) if approximate else None

    def votes(self, queries: Tensor) -> Tensor:
        """Return the votes [n, C] for queries [n, D] of any norm."""
        rows = max(1, min(MAX_QUERIES, self.max_similarities // (self.k * self.labels.shape[1])))
        votes = []
        for block in queries.split(rows):
            if self.inverted_file is not None:
                similarity, index = self.inverted_file.nearest(block, self.k)
            else:
                similarity, index = nearest_neighbours(
                    block, self.features, self.k, rows=rows, max_similarities=self.max_similarities
                )
            votes.append(soft_class_votes(similarity, self.labels[index], temperature=self.temperature))
        return torch.cat(votes)


def fit_knn(encoder: Encoder, train: SegmentationSet, config: KNNSegmentationConfig, output: Output) -> FittedMethod:
    """Remember labelled patches of the training images; nothing is written.

    All patches vote if there are fewer than `k`; the result says so.
    """
    if config.search == "faiss":  # refused before images are encoded
        load_faiss()
    encoder = dense_encoder(encoder, config)
    std = [RELEASED_STD.get(s, s) for s in encoder.std] if config.std == "released" else None
    view = PatchView.of(config, std)
    crop = MemoryCrop(view.side(encoder.patch_size)) if config.augment else None
    limit = config.max_memory * 2**20 // BYTES_PER_SIMILARITY
    features, labels = labelled_patches(
        encoder, train, view, config, output.progress, unit=True, passes=config.passes, crop=crop
    )
    notes = []
    if len(features) < config.k:
        notes = [f"k is {config.k}, but the memory has {counted(len(features), 'patch')}: all of them vote"]
        config = replace(config, k=len(features))
    memory = PatchMemory(
        features,
        labels,
        k=config.k,
        temperature=config.temperature,
        max_similarities=limit,
        approximate=config.search == "faiss",
    )
    facts = {"remembered": len(features)}
    return fitted_patches(encoder, view, memory.votes, config, max_logits=limit, facts=facts, notes=notes)
