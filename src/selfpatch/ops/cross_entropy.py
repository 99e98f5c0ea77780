"""Cross-entropy between a teacher's and a student's distributions over prototypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfpatch.core.reference import fast_path_of

MIN_CHUNK_ROWS = 256
"""Smallest number of rows of logits to form at once; fewer would read the prototypes too often."""
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**26}
"""Number of logits to form at once if that is more: it fits the cache, or is a small part of the memory."""


class Scores(NamedTuple):
    """Similarities to prototypes as two factors, so that [..., K] logits exist only where a loss forms them."""

    bottleneck: Tensor
    """[..., E], normalised."""
    prototypes: Tensor
    """[K, E]."""

    def logits(self) -> Tensor:
        """Return the similarities [..., K] in float32."""
        return (self.bottleneck @ self.prototypes.T).float()

    def select(self, count: int) -> Scores:
        """Return the scores of the first `count` entries of the leading dimension."""
        return Scores(self.bottleneck[:count], self.prototypes)

    def mean_logits(self) -> Tensor:
        """Return the mean [K] over all rows; the mean is linear, so no [..., K] tensor is needed."""
        mean = self.bottleneck.float().flatten(0, -2).mean(0)
        with torch.autocast(mean.device.type, enabled=False):
            return self.prototypes.float() @ mean


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Compute H(target, softmax(logits)) = -sum_k target_k log softmax(logits)_k.

    Args:
        target: [..., K] probabilities.
        logits: [..., K], broadcast against the target.

    Returns:
        [...] cross-entropies.
    """
    return logits.logsumexp(-1) - (target * logits).sum(-1)


def teacher_distribution(scores: Scores, center: Tensor, temp: float) -> Tensor:
    """Return the centred, sharpened distribution softmax((g - c) / tau), [..., K] (DINO, arXiv 2104.14294)."""
    return ((scores.logits() - center) / temp).softmax(-1)


def prototype_loss_reference(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float, weights: Tensor
) -> Tensor:
    """Compute the weighted sum of the rows' cross-entropies with their targets.

        sum_i weights[i] * H(softmax((teacher_i - center) / teacher_temp), softmax(student_i / student_temp))

    Args:
        student: scores [..., K].
        teacher: scores [..., K], which take no gradient.
        center: [K].
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher.
        weights: [...] weight of each row.

    Returns:
        A scalar.
    """
    target = teacher_distribution(teacher, center, teacher_temp).detach()
    return (weights * soft_cross_entropy(target, student.logits() / student_temp)).sum()


@fast_path_of(prototype_loss_reference)
def prototype_loss(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float, weights: Tensor
) -> Tensor:
    """Compute `prototype_loss_reference` in chunks of rows: no [..., K] tensor of all rows ever exists."""
    queries, teacher_rows = (scores.bottleneck.flatten(0, -2) for scores in (student, teacher))
    weights = weights.flatten()
    keys = _cast_prototypes(teacher_rows, teacher.prototypes)

    def targets() -> Iterator[_Targets]:
        for rows in _chunks(len(queries), student.prototypes):
            distribution = _sharpened(teacher_rows[rows], keys, center, teacher_temp)
            yield _Targets(rows, distribution.mul_(weights[rows, None]), weights[rows])

    return _prototype_loss(queries, student.prototypes, student_temp, targets())


def cross_view_loss_reference(target: Tensor, logits: Tensor) -> Tensor:
    """Compute DINO's loss over pairs of different views (arXiv 2104.14294, eq. 3).

        mean of H(target[t], softmax(logits[s])) over t in G, s in V, t != s, and over images

    Args:
        target: [G, B, K], the teacher's distributions for the global crops.
        logits: [V, B, K], the student's logits over its temperature for all crops, the same global crops first.

    Returns:
        A scalar.
    """
    pairs = [
        soft_cross_entropy(target[t], logits[s]).mean()
        for t in range(len(target))
        for s in range(len(logits))
        if s != t
    ]
    return torch.stack(pairs).mean()


@fast_path_of(cross_view_loss_reference)
def cross_view_loss(target: Tensor, logits: Tensor) -> Tensor:
    """Compute `cross_view_loss_reference` with one product for each student view.

    The cross-entropy is linear in the target, so the targets that a view is compared with are summed first.
    """
    G, V = len(target), len(logits)
    total = target.sum(0)
    summed_targets = torch.cat([total - target, total.expand(V - G, -1, -1)])  # [V, B, K]
    normaliser = logits.logsumexp(-1)  # [V, B], once for each target that a view is compared with
    losses = torch.cat([(G - 1) * normaliser[:G], G * normaliser[G:]]) - (summed_targets * logits).sum(-1)
    return losses.mean(1).sum() / (G * (V - 1))


def prototype_cross_view_loss_reference(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """Compute `cross_view_loss` between the distributions of teacher and student.

    Args:
        student: scores [V, B, K] of all crops.
        teacher: scores [G, B, K] of the global crops, which take no gradient.
        center: [K].
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher.

    Returns:
        A scalar.
    """
    target = teacher_distribution(teacher, center, teacher_temp).detach()
    return cross_view_loss(target, student.logits() / student_temp)


@fast_path_of(prototype_cross_view_loss_reference)
def prototype_cross_view_loss(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """Compute `prototype_cross_view_loss_reference` in chunks of images."""
    V, B = student.bottleneck.shape[:2]
    G = len(teacher.bottleneck)
    queries, teacher_rows = (  # [B * V, E], [B * G, E]
        scores.bottleneck.transpose(0, 1).flatten(0, 1) for scores in (student, teacher)
    )
    keys = _cast_prototypes(teacher_rows, teacher.prototypes)
    weight = 1 / (B * G * (V - 1))
    num_targets = torch.full((V,), G, device=teacher_rows.device)  # targets that a view is compared with
    num_targets[:G] -= 1

    def targets() -> Iterator[_Targets]:
        for images in _chunks(B, student.prototypes, rows=V):
            rows = teacher_rows[images.start * G : images.stop * G]
            each = _sharpened(rows, keys, center, teacher_temp).mul_(weight).unflatten(0, (-1, G))
            total = each.sum(1, keepdim=True)
            summed = torch.cat([total - each, total.expand(-1, V - G, -1)], 1).flatten(0, 1)
            yield _Targets(slice(images.start * V, images.stop * V), summed, (num_targets * weight).repeat(len(each)))

    return _prototype_loss(queries, student.prototypes, student_temp, targets())


class _Targets(NamedTuple):
    """Target distributions of a chunk of rows of logits."""

    rows: slice
    distribution: Tensor
    """[r, K] float32, weighted."""
    mass: Tensor
    """[r] sum of each row of `distribution`."""


def _chunks(count: int, prototypes: Tensor, rows: int = 1) -> Iterator[slice]:
    """Yield slices of `count` entries, each with `rows` rows of logits."""
    chunk_rows = max(MIN_CHUNK_ROWS, CHUNK_LOGITS.get(prototypes.device.type, 2**24) // len(prototypes))
    size = max(1, chunk_rows // rows)
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _cast_prototypes(rows: Tensor, prototypes: Tensor) -> Tensor:
    """Cast prototypes to autocast's type for a product with `rows`, unless the cast costs more than it saves."""
    device = prototypes.device.type
    if torch.is_autocast_enabled(device) and len(rows) >= MIN_CHUNK_ROWS:
        return prototypes.to(torch.get_autocast_dtype(device))
    return prototypes


def _sharpened(rows: Tensor, keys: Tensor, center: Tensor, temp: float) -> Tensor:
    """Return `teacher_distribution` of rows [r, E] and prototypes in the type of the product."""
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        logits = (rows / temp).to(keys.dtype) @ keys.T
        return torch.sub(logits, center / temp).softmax(-1)  # in float32, as the centre is


class _PrototypeLoss(torch.autograd.Function):
    """Sum over rows i of H(target_i, softmax(bottleneck_i @ prototypes.T / temp)), with gradients computed at once.

    With S_i = mass_i softmax(logits_i) - target_i they are S @ prototypes / temp and S^T @ bottleneck / temp, as small
    as the inputs, while autograd would store several [rows, K] tensors until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, bottleneck: Tensor, prototypes: Tensor, temp: float, targets: Iterable[_Targets]) -> Tensor:
        keys = _cast_prototypes(bottleneck, prototypes)
        needs_gradients = any(ctx.needs_input_grad)
        to_rows = torch.empty_like(bottleneck)
        to_prototypes: Tensor | None = None
        loss = prototypes.new_zeros(())
        with torch.autocast(bottleneck.device.type, enabled=False):
            for rows, target, mass in targets:
                queries = (bottleneck[rows] / temp).to(keys.dtype)
                log_probabilities = (queries @ keys.T).log_softmax(-1, dtype=target.dtype)
                loss -= (target * log_probabilities).sum()
                if needs_gradients:
                    slope = log_probabilities.exp_().mul_(mass[:, None]).sub_(target).to(keys.dtype)
                    to_rows[rows] = (slope @ keys).div_(temp)
                    to_prototypes = _plus_product(to_prototypes, slope.T, queries, prototypes.dtype)
        ctx.gradients = to_rows, to_prototypes
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        to_rows, to_prototypes = ctx.gradients
        del ctx.gradients  # scaled in place: a second copy would raise the step's peak memory
        of_rows, of_prototypes, *_ = ctx.needs_input_grad
        return (
            to_rows.mul_(grad_output) if of_rows else None,
            to_prototypes.mul_(grad_output) if of_prototypes and to_prototypes is not None else None,
            None,
            None,
        )


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return total + a @ b, in place if there is a total."""
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if a.dtype == dtype else total.add_(a @ b)


def _prototype_loss(bottleneck: Tensor, prototypes: Tensor, temp: float, targets: Iterable[_Targets]) -> Tensor:
    loss: Tensor = _PrototypeLoss.apply(bottleneck, prototypes, temp, targets)
    return loss
