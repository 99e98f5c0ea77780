"""Logistic regression on frozen patches, by L-BFGS.

There is no learning rate, no schedule and no augmentation, so that two networks differ by their features alone, and
seconds suffice where a linear layer trained by SGD takes minutes. No paper's protocol.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.result import Output, Progress, silent
from selfpatch.evaluation.segmentation.config import LogisticSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.inference import FittedMethod
from selfpatch.evaluation.segmentation.patches import PatchView, fitted_patches, labelled_patches


@dataclass(frozen=True)
class LogisticClassifier:
    """Linear classifier of standardised features: weight @ ((x - mean) / deviation) + bias."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits [..., C] of features [..., D]."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias)


@torch.enable_grad()
def solve_logistic(
    features: Tensor, labels: Tensor, *, weight_decay: float, iterations: int, progress: Progress = silent
) -> LogisticClassifier:
    """Minimise mean cross-entropy + weight_decay * |weight|^2 / 2 on standardised features, by L-BFGS.

    Features are [n, D], labels [n, C] shares of the classes, which sum to 1.
    """
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    deviation = deviation.clamp_min(1e-6)  # a constant feature carries no information
    standard = (features - mean) / deviation
    targets = labels.T.contiguous()[None]
    weight = features.new_zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = features.new_zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        # L-BFGS has no callback; it computes the loss at least once per iteration.
        progress("L-BFGS", optimizer.state[weight].get("n_iter", 0), iterations)
        optimizer.zero_grad()
        # One column a point: the softmax of a CPU is faster down many columns than along as many short rows.
        logits = torch.addmm(bias[:, None], weight, standard.T)  # [C, n]
        value = F.cross_entropy(logits[None], targets, reduction="sum") / len(labels)
        value = value + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LogisticClassifier(weight.detach(), bias.detach(), mean, deviation)


def fit_logistic(
    encoder: Encoder, train: SegmentationSet, config: LogisticSegmentationConfig, output: Output
) -> FittedMethod:
    """Fit logistic regression to patches of the training images; nothing is written."""
    encoder = dense_encoder(encoder, config)
    view = PatchView.of(config)
    features, labels = labelled_patches(encoder, train, view, config, output.progress, unit=False)
    classifier = solve_logistic(
        features, labels, weight_decay=config.weight_decay, iterations=config.iterations, progress=output.progress
    )
    return fitted_patches(encoder, view, classifier, config, facts={"remembered": len(features)})
