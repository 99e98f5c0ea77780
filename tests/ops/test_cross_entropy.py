"""Losses over prototypes against explicit loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from selfpatch.ops import cross_entropy
from selfpatch.ops.cross_entropy import (
    Scores,
    cross_view_loss,
    cross_view_loss_reference,
    prototype_cross_view_loss,
    prototype_cross_view_loss_reference,
    prototype_loss,
    prototype_loss_reference,
    soft_cross_entropy,
    teacher_distribution,
)


def scores(*leading: int, prototypes: int = 7, width: int = 5) -> Scores:
    generator = torch.manual_seed(3)
    return Scores(
        torch.randn(*leading, width, generator=generator), torch.randn(prototypes, width, generator=generator)
    )


def targets_and_logits(G: int, V: int, B: int = 3, K: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.manual_seed(G + 10 * V)
    target = torch.randn(G, B, K, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    return target, torch.randn(V, B, K, generator=generator, dtype=torch.float64).mul(5)


def test_soft_cross_entropy_is_entropy_plus_divergence() -> None:
    target, logits = targets_and_logits(2, 2)
    teacher, student = Categorical(probs=target), Categorical(logits=logits)
    expected = teacher.entropy() + torch.distributions.kl_divergence(teacher, student)
    torch.testing.assert_close(soft_cross_entropy(target, logits), expected)


def test_soft_cross_entropy_survives_large_logits() -> None:
    loss = soft_cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1000.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


def test_teacher_distribution_centres_and_sharpens() -> None:
    given, center = scores(2, 3), torch.linspace(-1, 1, 7)
    weights = ((given.bottleneck @ given.prototypes.T - center) / 0.07).exp()
    torch.testing.assert_close(teacher_distribution(given, center, 0.07), weights / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize(("G", "V"), [(2, 2), (2, 3), (2, 10), (1, 4), (3, 5)])
def test_cross_view_loss_is_the_mean_over_pairs_of_different_views(G: int, V: int) -> None:
    target, logits = targets_and_logits(G, V)
    by_loop, pairs = 0.0, 0
    for t in range(G):
        for s in range(V):
            if s != t:
                log_probabilities = logits[s].log_softmax(-1)
                for b in range(target.shape[1]):
                    by_loop -= float(target[t, b] @ log_probabilities[b])
                    pairs += 1
    assert pairs == (G * V - G) * target.shape[1]
    for loss in (cross_view_loss, cross_view_loss_reference):
        assert float(loss(target, logits)) == pytest.approx(by_loop / pairs, rel=1e-12)


@pytest.mark.parametrize(("G", "V"), [(2, 2), (2, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_cross_view_loss_equals_its_reference_and_so_do_its_gradients(
    G: int, V: int, dtype: torch.dtype, tolerance: float
) -> None:
    target, logits = (x.to(dtype) for x in targets_and_logits(G, V))
    results = []
    for loss_of in (cross_view_loss, cross_view_loss_reference):
        given = logits.clone().requires_grad_()
        loss = loss_of(target, given)
        results.append((loss.detach(), torch.autograd.grad(loss, given)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_cross_view_loss_leaves_out_the_same_view() -> None:
    """With one target only, the logits of that view get no gradient."""
    target, logits = targets_and_logits(1, 3)
    (gradient,) = torch.autograd.grad(cross_view_loss(target, logits.requires_grad_()), logits)
    assert not gradient[0].any()
    assert gradient[1:].flatten(1).any(1).all()


@pytest.mark.parametrize("leading", [(4,), (3, 4)])
def test_mean_logits_is_the_mean_of_the_logits(leading: tuple[int, ...]) -> None:
    given = scores(*leading)
    torch.testing.assert_close(given.mean_logits(), given.logits().flatten(0, -2).mean(0))


def test_mean_logits_keeps_float32_under_autocast() -> None:
    given = scores(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mean = given.mean_logits()
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, given.logits().flatten(0, -2).mean(0))


def test_selected_scores_are_the_first_ones() -> None:
    given = scores(5, 2)
    assert torch.equal(given.select(2).logits(), given.logits()[:2])


class Sides:
    """Scores of a student, to be trained, and of a teacher, whose prototypes have a centre."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        generator = torch.manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype)

        self.student = Scores(draw(*student, 5).requires_grad_(), draw(9, 5).requires_grad_())
        self.teacher = Scores(draw(*teacher, 5), draw(9, 5))
        self.center, self.weights = draw(9), draw(*student).abs()

    def loss_and_gradients(self, loss_of: Callable[..., Tensor], **more: Tensor) -> list[Tensor]:
        loss = loss_of(self.student, self.teacher, self.center, student_temp=0.2, teacher_temp=0.1, **more)
        return [loss.detach(), *torch.autograd.grad(3 * loss, self.student)]


@pytest.fixture(params=[1, 4, 1000], ids=lambda rows: f"{rows} rows at once")
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "MIN_CHUNK_ROWS", request.param)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", {"cpu": 1})


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("shape", [(11,), (2, 3, 2), (1,)], ids=str)
def test_prototype_loss_is_its_reference(shape: tuple[int, ...]) -> None:
    sides = Sides(shape, shape)
    results = [
        sides.loss_and_gradients(loss, weights=sides.weights) for loss in (prototype_loss, prototype_loss_reference)
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=3e-5)  # `Scores.logits` are float32


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize(("G", "V"), [(2, 2), (2, 5), (1, 3), (3, 4)])
def test_prototype_cross_view_loss_is_its_reference(G: int, V: int) -> None:
    sides = Sides((V, 7), (G, 7))
    results = [
        sides.loss_and_gradients(loss) for loss in (prototype_cross_view_loss, prototype_cross_view_loss_reference)
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=3e-5)  # `Scores.logits` are float32


def test_rows_that_weigh_nothing_take_no_gradient() -> None:
    sides = Sides((6,), (6,))
    sides.weights[2:4] = 0
    _, of_rows, _ = sides.loss_and_gradients(prototype_loss, weights=sides.weights)
    assert not of_rows[2:4].any()
    assert of_rows[[0, 1, 4, 5]].any(1).all()


def test_frozen_prototypes_take_no_gradient() -> None:
    """They need none of the work either, but the rows need theirs."""
    sides = Sides((6,), (6,))
    expected = sides.loss_and_gradients(prototype_loss_reference, weights=sides.weights)[1]
    frozen = Scores(sides.student.bottleneck, sides.student.prototypes.detach())
    loss = prototype_loss(
        frozen, sides.teacher, sides.center, student_temp=0.2, teacher_temp=0.1, weights=sides.weights
    )
    (3 * loss).backward()
    assert sides.student.bottleneck.grad is not None
    torch.testing.assert_close(sides.student.bottleneck.grad, expected, rtol=1e-5, atol=3e-5)
    assert sides.student.prototypes.grad is None


def test_no_tensor_of_all_rows_and_prototypes_is_made() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    rows, K = 3 * cross_entropy.MIN_CHUNK_ROWS, 2**13
    student, teacher = (
        Scores(torch.randn(rows, 8, requires_grad=grad), torch.randn(K, 8, requires_grad=grad))
        for grad in (True, False)
    )
    with Largest() as largest:
        prototype_loss(
            student, teacher, torch.zeros(K), student_temp=0.1, teacher_temp=0.1, weights=torch.ones(rows)
        ).backward()
    assert largest.numel == cross_entropy.MIN_CHUNK_ROWS * K


@pytest.mark.parametrize("rows", [40, 600], ids=["few rows stay in float32", "many are cast"])
def test_bfloat16_is_as_near_to_float32_as_the_plain_way(rows: int) -> None:
    sides = Sides((rows,), (rows,), torch.float32)
    sides.weights /= sides.weights.sum()
    exact = sides.loss_and_gradients(prototype_loss_reference, weights=sides.weights)
    with torch.autocast("cpu", torch.bfloat16):
        fast = sides.loss_and_gradients(prototype_loss, weights=sides.weights)
        plain = sides.loss_and_gradients(prototype_loss_reference, weights=sides.weights)
    for own, theirs, true in zip(fast, plain, exact, strict=True):
        assert own.dtype == true.dtype
        assert (own - true).norm() <= 1.5 * (theirs - true).norm() + 1e-6 * true.norm()
