"""Cross-entropy between a teacher's and a student's distributions over prototypes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """Similarities to prototypes as their two factors, so that [..., K] logits exist only where a loss forms them."""

    bottleneck: Tensor
    """[..., E], normalised."""
    prototypes: Tensor
    """[K, E]."""

    def logits(self) -> Tensor:
        """[..., K] float32."""
        return (self.bottleneck @ self.prototypes.T).float()

    def select(self, count: int) -> Scores:
        """The scores of the first `count` entries of the leading dimension."""
        return Scores(self.bottleneck[:count], self.prototypes)

    def mean_logits(self) -> Tensor:
        """[K] mean over everything but the prototypes. The mean is linear, so that no [..., K] tensor is needed."""
        mean = self.bottleneck.float().flatten(0, -2).mean(0)
        with torch.autocast(mean.device.type, enabled=False):
            return self.prototypes.float() @ mean


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """H(target, softmax(logits)) = -sum_k target_k log softmax(logits)_k.

    Args:
        target: [..., K] probabilities.
        logits: [..., K], broadcast against the target.

    Returns:
        [...], the cross-entropy of each pair.
    """
    return logits.logsumexp(-1) - (target * logits).sum(-1)


def teacher_distribution(scores: Scores, center: Tensor, temp: float) -> Tensor:
    """The teacher's centred and sharpened distribution, softmax((g - c) / tau): [..., K] (DINO, arXiv 2104.14294)."""
    return ((scores.logits() - center) / temp).softmax(-1)


def cross_view_loss_reference(target: Tensor, logits: Tensor) -> Tensor:
    """DINO's loss over pairs of different views (arXiv 2104.14294, eq. 3):

        mean of H(target[t], softmax(logits[s])) over t in G, s in V, t != s, and over images

    Args:
        target: [G, B, K] the teacher's distributions of the global crops.
        logits: [V, B, K] the student's logits of all crops over its temperature, the same global crops first.
    """
    pairs = [
        soft_cross_entropy(target[t], logits[s]).mean()
        for t in range(len(target))
        for s in range(len(logits))
        if s != t
    ]
    return torch.stack(pairs).mean()


def cross_view_loss(target: Tensor, logits: Tensor) -> Tensor:
    """`cross_view_loss_reference` with one product a student view: the cross-entropy is linear in the target, so that
    the targets which a view is compared with are added up first."""
    G, V = len(target), len(logits)
    everything = target.sum(0)
    opposite = torch.cat([everything - target, everything.expand(V - G, -1, -1)])  # [V, B, K]
    normaliser = logits.logsumexp(-1)  # [V, B], once for each target that a view is compared with
    losses = torch.cat([(G - 1) * normaliser[:G], G * normaliser[G:]]) - (opposite * logits).sum(-1)
    return losses.mean(1).sum() / (G * (V - 1))
