"""Logistic regression on frozen patches, by L-BFGS.

There is no learning rate, no schedule and no augmentation, so that two networks differ by their features alone, and
seconds suffice where a linear layer trained by SGD takes minutes. No paper's protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Progress, Provenance, Result
from selfpatch.evaluation.segmentation.inference import classes_at
from selfpatch.evaluation.segmentation.knn import build_memory
from selfpatch.evaluation.segmentation.patches import whole_features
from selfpatch.evaluation.segmentation.scoring import check_at_least, open_splits, score_images


class Classifier(NamedTuple):
    """logits = weight @ ((x - mean) / deviation) + bias."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias)


@torch.enable_grad()
def fit_logistic(features: Tensor, labels: Tensor, *, weight_decay: float, iterations: int) -> Classifier:
    """The minimum of mean cross-entropy + weight_decay * |weight|^2 / 2 on standardised features, by L-BFGS.

    Args:
        features: [n, D].
        labels: [n, C] shares of the classes, which sum to 1.
        iterations: at most so many.
    """
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    deviation = deviation.clamp_min(1e-6)  # a feature that never changes says nothing
    standard = (features - mean) / deviation
    weight = features.new_zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = features.new_zeros(labels.shape[1], requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(F.linear(standard, weight, bias), labels) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    return Classifier(weight.detach(), bias.detach(), mean, deviation)


def evaluate_logistic(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    kind: str | None = None,
    train_split: str = "train",
    test_split: str = "val",
    limit: int | None = None,
    memory_patches: int = 1_000_000,
    resolution: int = 320,
    weight_decay: float = 1e-4,
    iterations: int = 100,
    seed: int = 0,
    max_pictures: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """Segmentation by logistic regression; the settings are those of `segment.evaluate`."""
    check_at_least(1, memory_patches=memory_patches, resolution=resolution, iterations=iterations)
    check_at_least(0, weight_decay=weight_decay)
    train, test = open_splits(data, kind, train_split, test_split, limit)
    features, labels = build_memory(
        encoder, train, resolution=resolution, memory_patches=memory_patches, seed=seed, unit=False, progress=progress
    )
    classifier = fit_logistic(features, labels, weight_decay=weight_decay, iterations=iterations)

    def predict(image: Image.Image) -> Tensor:
        logits = classifier(whole_features(encoder, image, resolution))  # [h, w, C]
        return classes_at(logits.permute(2, 0, 1)[None], (image.height, image.width))

    scored = score_images(test, predict, out=out, max_pictures=max_pictures, progress=progress)
    settings: dict[str, Any] = {
        "method": "logistic",
        "data": str(data),
        "kind": test.kind,
        "train_split": train_split,
        "test_split": test_split,
    }
    settings |= {"memory_patches": memory_patches, "resolution": resolution, "weight_decay": weight_decay}
    settings |= {"iterations": iterations, "seed": seed, "train_images": len(train), "test_images": len(test)}
    return scored.result(test.classes, settings | {"remembered": len(features)}, weights)
