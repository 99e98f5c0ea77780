"""Cross-entropy between a teacher's and a student's distributions over prototypes."""

from collections.abc import Iterator, Sequence
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

    def select(self, count: int) -> "Scores":
        """Return the scores of the first `count` entries of the leading dimension."""
        return Scores(self.bottleneck[:count], self.prototypes)

    def at(self, indices: tuple[Tensor, ...]) -> "Scores":
        """Return the scores [n, K] of n entries, given their indices [n] in each leading dimension."""
        return Scores(self.bottleneck[indices], self.prototypes)

    def mean_logits(self) -> Tensor:
        """Return the mean [K] over all rows; the mean is linear, so no [..., K] tensor is needed."""
        mean = self.bottleneck.float().flatten(0, -2).mean(0)
        with torch.autocast(mean.device.type, enabled=False):
            return self.prototypes.float() @ mean


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Compute H(target, softmax(logits)) = -sum_k target_k log softmax(logits)_k, [..., K] both -> [...]."""
    return logits.logsumexp(-1) - (target * logits).sum(-1)


def teacher_distribution(scores: Scores, center: Tensor, temp: float) -> Tensor:
    """Return the centred, sharpened distribution softmax((g - c) / tau), [..., K] (DINO, arXiv 2104.14294)."""
    return ((scores.logits() - center) / temp).softmax(-1)


def prototype_loss_reference(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float, weights: Tensor
) -> Tensor:
    """Compute the weighted sum of the rows' cross-entropies with their targets, a scalar.

        sum_i weights[i] * H(softmax((teacher_i - center) / teacher_temp), softmax(student_i / student_temp))

    Scores are [..., K], the centre is [K] and weights are [...]. The teacher takes no gradient.
    """
    target = teacher_distribution(teacher, center, teacher_temp).detach()
    return (weights * soft_cross_entropy(target, student.logits() / student_temp)).sum()


@fast_path_of(prototype_loss_reference)
def prototype_loss(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float, weights: Tensor
) -> Tensor:
    """See `prototype_loss_reference`; rows come in chunks, so that no [..., K] tensor of all rows ever exists."""
    queries, teacher_rows = (scores.bottleneck.flatten(0, -2) for scores in (student, teacher))
    weights = weights.flatten()
    keys = cast_prototypes(teacher_rows, teacher.prototypes)

    def targets() -> Iterator[tuple[slice, Tensor, Tensor]]:
        for rows in chunks(len(queries), keys):
            distribution = _sharpened(teacher_rows[rows], keys, center, teacher_temp)
            yield rows, distribution.mul_(weights[rows, None]), weights[rows]

    return sum_of_cross_entropies(queries, student.prototypes, student_temp, targets())


def cross_view_loss_reference(target: Tensor, logits: Tensor) -> Tensor:
    """Compute DINO's loss over pairs of different views, a scalar (arXiv 2104.14294, eq. 3).

        mean of H(target[t], softmax(logits[s])) over t in G, s in V, t != s, and over images

    Args:
        target: [G, B, K], the teacher's distributions for the global crops.
        logits: [V, B, K], the student's logits over its temperature for all crops, the same global crops first.
    """
    pairs = [(t, s) for t in range(len(target)) for s in range(len(logits)) if s != t]
    return torch.stack([soft_cross_entropy(target[t], logits[s]).mean() for t, s in pairs]).mean()


@fast_path_of(cross_view_loss_reference)
def cross_view_loss(target: Tensor, logits: Tensor) -> Tensor:
    """See `cross_view_loss_reference`; each student view is compared once, with the sum of its targets.

    The cross-entropy is linear in the target.
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
    """Compute `cross_view_loss` between the distributions of teacher and student, a scalar.

    The student's scores are [V, B, K] of all crops, the teacher's [G, B, K] of the global ones, without gradient.
    """
    target = teacher_distribution(teacher, center, teacher_temp).detach()
    return cross_view_loss(target, student.logits() / student_temp)


@fast_path_of(prototype_cross_view_loss_reference)
def prototype_cross_view_loss(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """See `prototype_cross_view_loss_reference`; images come in chunks."""
    V, B = student.bottleneck.shape[:2]
    G = len(teacher.bottleneck)
    queries, teacher_rows = (  # [B * V, E], [B * G, E]
        scores.bottleneck.transpose(0, 1).flatten(0, 1) for scores in (student, teacher)
    )
    keys = cast_prototypes(teacher_rows, teacher.prototypes)
    weight = 1 / (B * G * (V - 1))
    num_targets = torch.full((V,), G, device=teacher_rows.device)  # targets that a view is compared with
    num_targets[:G] -= 1

    def targets() -> Iterator[tuple[slice, Tensor, Tensor]]:
        for images in chunks(B, keys, rows=V):
            rows = teacher_rows[images.start * G : images.stop * G]
            each = _sharpened(rows, keys, center, teacher_temp).mul_(weight).unflatten(0, (-1, G))
            total = each.sum(1, keepdim=True)
            summed = torch.cat([total - each, total.expand(-1, V - G, -1)], 1).flatten(0, 1)
            yield slice(images.start * V, images.stop * V), summed, (num_targets * weight).repeat(len(each))

    return sum_of_cross_entropies(queries, student.prototypes, student_temp, targets())


def chunks(count: int, prototypes: Tensor, rows: int = 1) -> Iterator[slice]:
    """Yield slices of `count` entries, each with `rows` rows of logits."""
    chunk_rows = max(MIN_CHUNK_ROWS, CHUNK_LOGITS.get(prototypes.device.type, 2**24) // len(prototypes))
    size = max(1, chunk_rows // rows)
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def cast_prototypes(rows: Tensor, prototypes: Tensor) -> Tensor:
    """Cast prototypes to autocast's type for a product with `rows`, unless the cast costs more than it saves."""
    device = prototypes.device.type
    if torch.is_autocast_enabled(device) and len(rows) >= MIN_CHUNK_ROWS:
        return prototypes.to(torch.get_autocast_dtype(device))
    return prototypes


def _sharpened(rows: Tensor, keys: Tensor, center: Tensor, temp: float) -> Tensor:
    """Return `teacher_distribution` of rows [r, E] and prototypes in the type of the product."""
    logits = (rows / temp).to(keys.dtype) @ keys.T
    return torch.sub(logits, center / temp).softmax(-1)  # in float32, as the centre is


def sum_of_cross_entropies(
    bottleneck: Tensor, prototypes: Tensor, temp: float, targets: Iterator[tuple[slice, Tensor, Tensor]]
) -> Tensor:
    """Sum H(target_i, softmax(bottleneck_i @ prototypes.T / temp)) over rows i, with gradients computed at once.

    With S_i = mass_i softmax(logits_i) - target_i they are S @ prototypes / temp and S^T @ bottleneck / temp, as small
    as the inputs, while autograd would store several [rows, K] tensors until the backward pass. `targets` yields rows,
    their weighted distributions [r, K] in float32, and the mass [r], the sum of each distribution.
    """
    keys = cast_prototypes(bottleneck, prototypes)
    needs_gradients = torch.is_grad_enabled() and (bottleneck.requires_grad or prototypes.requires_grad)
    to_rows, to_prototypes = torch.empty_like(bottleneck), None
    loss = prototypes.new_zeros(())
    with torch.no_grad(), torch.autocast(bottleneck.device.type, enabled=False):
        for rows, target, mass in targets:
            queries = (bottleneck[rows] / temp).to(keys.dtype)
            log_probabilities = (queries @ keys.T).log_softmax(-1, dtype=target.dtype)
            loss -= (target * log_probabilities).sum()
            if not needs_gradients:
                continue
            slope = log_probabilities.exp_().mul_(mass[:, None]).sub_(target).to(keys.dtype)
            to_rows[rows] = (slope @ keys).div_(temp)
            if to_prototypes is None:
                to_prototypes = (slope.T @ queries).to(prototypes.dtype)
            elif slope.dtype == to_prototypes.dtype:
                to_prototypes.addmm_(slope.T, queries)
            else:
                to_prototypes += slope.T @ queries
    if needs_gradients and to_prototypes is None:  # there is no row
        to_prototypes = torch.zeros_like(prototypes)
    return attach_gradients(loss, (bottleneck, prototypes), (to_rows, to_prototypes))


def attach_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return a scalar whose gradients for `inputs` are known already; a backward pass scales them in place."""
    attached: Tensor = _KnownGradients.apply(value, gradients, *inputs)
    return attached


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # A second copy of the gradients would raise the step's peak memory.
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(known.mul_(grad_output) if needed else None for known, needed in pairs)
