"""Cross-entropy between a teacher's and a student's distributions over prototypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfpatch.core.reference import fast_path_of

ROWS_AT_ONCE = 256
"""Rows of logits that are formed at once at the least: fewer would read the prototypes too often."""
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
"""Logits that are formed at once where that is more: what stays in the cache, or is a small part of the memory."""


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


def prototype_loss_reference(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float, weights: Tensor
) -> Tensor:
    """Each row's cross-entropy with its target, added up:

        sum_i weights[i] * H(softmax((teacher_i - center) / teacher_temp), softmax(student_i / student_temp))

    Args:
        student, teacher: scores [..., K]; the teacher's take no gradient.
        center: [K].
        weights: [...] of the rows.

    Returns:
        A scalar.
    """
    target = teacher_distribution(teacher, center, teacher_temp).detach()
    return (weights * soft_cross_entropy(target, student.logits() / student_temp)).sum()


@fast_path_of(prototype_loss_reference)
def prototype_loss(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float, weights: Tensor
) -> Tensor:
    """`prototype_loss_reference`, some rows at a time: no [..., K] tensor of all rows ever exists."""
    own, their, weights = student.bottleneck.flatten(0, -2), teacher.bottleneck.flatten(0, -2), weights.flatten()
    keys = _as_multiplied(their, teacher.prototypes)

    def targets() -> Iterator[_Targets]:
        for rows in _chunks(len(own), student.prototypes):
            distribution = _sharpened(their[rows], keys, center, teacher_temp)
            yield _Targets(rows, distribution.mul_(weights[rows, None]), weights[rows])

    return _prototype_loss(own, student.prototypes, student_temp, targets())


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


@fast_path_of(cross_view_loss_reference)
def cross_view_loss(target: Tensor, logits: Tensor) -> Tensor:
    """`cross_view_loss_reference` with one product a student view: the cross-entropy is linear in the target, so that
    the targets which a view is compared with are added up first."""
    G, V = len(target), len(logits)
    everything = target.sum(0)
    opposite = torch.cat([everything - target, everything.expand(V - G, -1, -1)])  # [V, B, K]
    normaliser = logits.logsumexp(-1)  # [V, B], once for each target that a view is compared with
    losses = torch.cat([(G - 1) * normaliser[:G], G * normaliser[G:]]) - (opposite * logits).sum(-1)
    return losses.mean(1).sum() / (G * (V - 1))


def prototype_cross_view_loss_reference(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """`cross_view_loss` between the distributions of teacher and student.

    Args:
        student: scores [V, B, K] of all crops.
        teacher: scores [G, B, K] of the global ones, which take no gradient.
        center: [K].
    """
    target = teacher_distribution(teacher, center, teacher_temp).detach()
    return cross_view_loss(target, student.logits() / student_temp)


@fast_path_of(prototype_cross_view_loss_reference)
def prototype_cross_view_loss(
    student: Scores, teacher: Scores, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """`prototype_cross_view_loss_reference`, some images at a time."""
    V, B = student.bottleneck.shape[:2]
    G = len(teacher.bottleneck)
    own, their = (x.bottleneck.transpose(0, 1).flatten(0, 1) for x in (student, teacher))  # [B * V, E], [B * G, E]
    keys = _as_multiplied(their, teacher.prototypes)
    weight = 1 / (B * G * (V - 1))
    seen = torch.full((V,), G, device=their.device)  # targets that a view is compared with
    seen[:G] -= 1

    def targets() -> Iterator[_Targets]:
        for images in _chunks(B, student.prototypes, rows=V):
            rows = their[images.start * G : images.stop * G]
            each = _sharpened(rows, keys, center, teacher_temp).mul_(weight).unflatten(0, (-1, G))
            all_of_them = each.sum(1, keepdim=True)
            opposite = torch.cat([all_of_them - each, all_of_them.expand(-1, V - G, -1)], 1).flatten(0, 1)
            yield _Targets(slice(images.start * V, images.stop * V), opposite, (seen * weight).repeat(len(each)))

    return _prototype_loss(own, student.prototypes, student_temp, targets())


class _Targets(NamedTuple):
    """What some rows of logits are held against."""

    rows: slice
    distribution: Tensor
    """[r, K] float32, weighted."""
    mass: Tensor
    """[r] what it adds up to."""


def _chunks(count: int, prototypes: Tensor, rows: int = 1) -> Iterator[slice]:
    """Slices of `count` entries of so many rows of logits each."""
    at_once = max(ROWS_AT_ONCE, LOGITS_AT_ONCE.get(prototypes.device.type, 2**24) // len(prototypes))
    size = max(1, at_once // rows)
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _as_multiplied(rows: Tensor, prototypes: Tensor) -> Tensor:
    """The prototypes as products with so many rows take them: in autocast's type, unless to cast the prototypes would
    cost more than it saves."""
    device = prototypes.device.type
    if torch.is_autocast_enabled(device) and len(rows) >= ROWS_AT_ONCE:
        return prototypes.to(torch.get_autocast_dtype(device))
    return prototypes


def _sharpened(rows: Tensor, keys: Tensor, center: Tensor, temp: float) -> Tensor:
    """`teacher_distribution` of rows [r, E] and prototypes in the type of the product."""
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        logits = (rows / temp).to(keys.dtype) @ keys.T
        return torch.sub(logits, center / temp).softmax(-1)  # in float32, as the centre is


class _PrototypeLoss(torch.autograd.Function):
    """The sum over rows i of H(target_i, softmax(bottleneck_i @ prototypes.T / temp)), its gradients computed at once.

    With S_i = mass_i softmax(logits_i) - target_i they are S @ prototypes / temp and S^T @ bottleneck / temp: as small
    as what they are of, while autograd would keep several [rows, K] tensors until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, bottleneck: Tensor, prototypes: Tensor, temp: float, targets: Iterable[_Targets]) -> Tensor:
        keys = _as_multiplied(bottleneck, prototypes)
        wanted = any(ctx.needs_input_grad)
        to_rows = torch.empty_like(bottleneck)
        to_prototypes: Tensor | None = None
        loss = prototypes.new_zeros(())
        with torch.autocast(bottleneck.device.type, enabled=False):
            for rows, target, mass in targets:
                queries = (bottleneck[rows] / temp).to(keys.dtype)
                log_probabilities = (queries @ keys.T).log_softmax(-1, dtype=target.dtype)
                loss -= (target * log_probabilities).sum()
                if wanted:
                    slope = log_probabilities.exp_().mul_(mass[:, None]).sub_(target).to(keys.dtype)
                    to_rows[rows] = (slope @ keys).div_(temp)
                    to_prototypes = _plus_product(to_prototypes, slope.T, queries, prototypes.dtype)
        ctx.gradients = to_rows, to_prototypes
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        to_rows, to_prototypes = ctx.gradients
        del ctx.gradients  # they are scaled in place: a second copy would come on top of the step's most memory
        of_rows, of_prototypes, *_ = ctx.needs_input_grad
        return (
            to_rows.mul_(grad_output) if of_rows else None,
            to_prototypes.mul_(grad_output) if of_prototypes and to_prototypes is not None else None,
            None,
            None,
        )


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """total + a @ b, in place where there is something to add to."""
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if a.dtype == dtype else total.add_(a @ b)


def _prototype_loss(bottleneck: Tensor, prototypes: Tensor, temp: float, targets: Iterable[_Targets]) -> Tensor:
    loss: Tensor = _PrototypeLoss.apply(bottleneck, prototypes, temp, targets)
    return loss
