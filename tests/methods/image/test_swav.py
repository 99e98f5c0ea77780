"""SwAV against a plain loop over views, and two processes against one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Tokens, Views
from selfpatch.losses.swav import SwAVConfig, SwAVHead
from selfpatch.methods.image.swav import SwAV
from selfpatch.ops.sinkhorn import sinkhorn, sinkhorn_reference
from tests.helpers.tiny import hyperparameters
from tests.helpers.workers import WorkerPool

B, D, E, K, QUEUE = 4, 6, 5, 7, 8
SMALL = {"num_prototypes": K, "hidden_dim": 10, "out_dim": E}


def make(local: int = 2, **settings: Any) -> tuple[SwAV, EncoderOutput, EncoderOutput]:
    """The method, and both sides with weights and tokens of their own."""
    torch.manual_seed(0)
    method = SwAV(D, B, SwAVConfig(**(SMALL | settings)))
    grid = Tokens(None, torch.empty(2 * B, 2, 2, D), torch.empty(2 * B, 2, 2, D))
    sides = [EncoderOutput(torch.randn(V, B, D), (grid,), method.heads(), None) for V in (2 + local, 2)]
    return method, replace(sides[0], image=sides[0].image.requires_grad_()), sides[1]


def views(num_global: int = 2) -> Views:
    return Views(torch.empty(num_global, B, 3, 4, 4), None, torch.empty(num_global, B, 5), torch.arange(B))


def projections(head: nn.Module, tokens: Tensor) -> Tensor:
    """[V, B, E] of norm 1, written out: linear, batch norm over all views and images, ReLU, linear."""
    first, norm, _, second = head.projector
    hidden = first(tokens)
    mean, variance = hidden.mean((0, 1)), hidden.var((0, 1), correction=0)
    normed = norm.weight * (hidden - mean) / (variance + 1e-5).sqrt() + norm.bias
    projected = second(normed.relu())
    return projected / projected.norm(dim=-1, keepdim=True)


def plain_loss(student: EncoderOutput, queues: list[Tensor] | None = None) -> Tensor:
    """Compute the loss as in the paper, in loops over views and images."""
    head = student.heads["prototypes"]
    scores = projections(head, student.image) @ head.last_layer.weight.T  # [V, B, K]
    V, loss = len(scores), torch.zeros(())
    for g in range(2):
        own = scores[g].detach()
        earlier = queues[g] @ head.last_layer.weight.detach().T if queues else own[:0]
        codes = sinkhorn_reference(torch.cat([earlier, own]))[-B:]
        others = [v for v in range(V) if v != g]
        for v in others:
            for b in range(B):
                loss = loss - (codes[b] * torch.log_softmax(scores[v, b] / 0.1, 0)).sum() / (B * len(others) * 2)
    return loss


@pytest.mark.parametrize("local", [0, 2])
def test_loss_and_gradients_are_the_papers(local: int) -> None:
    method, student, teacher = make(local)
    losses = method(student, teacher, views(), hyperparameters())
    expected = plain_loss(student)
    assert losses.keys() == method.loss_weights.keys()
    torch.testing.assert_close(losses["swapped"], expected)
    learned = [student.image, *student.heads["prototypes"].parameters()]
    gradients = torch.autograd.grad(losses["swapped"], learned)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, learned), rtol=1e-4, atol=1e-6)
    assert all(view.any() for view in gradients[0]), "every view predicts"


def test_codes_are_the_students_own() -> None:
    method, student, teacher = make()
    loss = method(student, teacher, views(), hyperparameters())["swapped"]
    other = replace(teacher, image=torch.randn_like(teacher.image), heads=method.heads())
    assert torch.equal(method(student, other, views(), hyperparameters())["swapped"], loss)


def test_codes_are_found_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    method, student, teacher = make()
    seen: list[Tensor] = []
    monkeypatch.setattr(method.loss, "_assign", lambda scores: seen.append(scores) or sinkhorn(scores))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(student, teacher, views(), hyperparameters())["swapped"]
    assert loss.dtype == torch.float32
    for scores in seen:
        assert not torch.equal(scores, scores.bfloat16().float())
    torch.testing.assert_close(loss, plain_loss(student), rtol=0.05, atol=0)


def test_each_image_counts_once_and_prototypes_are_used_alike() -> None:
    method, student, _ = make(iterations=200, epsilon=0.5)
    scores = student.heads["prototypes"](student.image)
    codes = method.loss.codes(scores.logits()[:2], scores.prototypes, use_queues=True)
    assert codes.shape == (2, B, K)
    assert not codes.requires_grad
    torch.testing.assert_close(codes.sum(-1), torch.ones(2, B))
    torch.testing.assert_close(codes.sum(1), torch.full((2, K), B / K))


def test_queued_projections_are_assigned_along() -> None:
    method, student, teacher = make(queue_size=QUEUE, queue_from_epoch=1)
    queues = [queue.keys.clone() for queue in method.loss.queues]
    loss = method(student, teacher, views(), hyperparameters(step=2, epoch=1))["swapped"]
    torch.testing.assert_close(loss, plain_loss(student, queues))
    assert not torch.allclose(loss, plain_loss(student))


@pytest.mark.parametrize(("step", "epoch"), [(100, 0), (1, 1)])
def test_queues_wait_for_their_epoch_and_until_they_are_full(step: int, epoch: int) -> None:
    method, student, teacher = make(queue_size=QUEUE, queue_from_epoch=1)
    loss = method(student, teacher, views(), hyperparameters(step=step, epoch=epoch))["swapped"]
    torch.testing.assert_close(loss, plain_loss(student))


def test_each_global_views_projections_enter_a_queue_of_its_own() -> None:
    method, student, teacher = make(queue_size=QUEUE)
    before = [queue.keys.clone() for queue in method.loss.queues]
    method(student, teacher, views(), hyperparameters())
    assert all(torch.equal(queue.keys, old) for queue, old in zip(method.loss.queues, before, strict=True))
    expected = projections(student.heads["prototypes"], student.image).detach()
    for view, queue in enumerate(method.loss.queues):
        queue.update()
        torch.testing.assert_close(queue.keys, torch.cat([expected[view], before[view][B:]]))


def test_the_prototypes_can_be_frozen_by_their_name() -> None:
    names = [name for name, _ in nn.ModuleDict(make()[0].heads()).named_parameters() if ".last_layer." in name]
    assert names == ["prototypes.last_layer.weight"]


def test_the_defaults_are_the_published_ones() -> None:
    method = SwAV(D, 4096, SwAVConfig())
    head = method.heads()["prototypes"]
    assert isinstance(head, SwAVHead)
    assert [type(part).__name__ for part in head.projector] == ["Linear", "BatchNorm", "ReLU", "Linear"]
    assert (head.projector[0].out_features, head.projector[3].out_features) == (2048, 128)
    assert head.last_layer().shape == (3000, 128)
    assert (method.config.temp, method.config.epsilon, method.config.iterations) == (0.1, 0.05, 3)
    assert len(method.loss.queues) == 0


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"swav.queue_size is 10, which the batch of 4 images does not divide"):
        SwAV(D, B, SwAVConfig(queue_size=10))
    method, student, teacher = make(queue_size=QUEUE)
    with pytest.raises(ValueError, match="SwAV's queues are for 2 global crops of an image, but there are 3; make 2"):
        method(student, teacher, views(3), hyperparameters())


def learn(images: slice) -> dict[str, Any]:
    """Two steps, each with its update, so that the second one's codes are found beside a queue."""
    method, student, teacher = make(queue_size=QUEUE, queue_from_epoch=0)
    losses, parameters = [], list(student.heads["prototypes"].parameters())
    tokens = student.image.detach()
    for step in (0, 2):
        part = replace(student, image=tokens[:, images] * (1 + step))
        losses.append(method(part, teacher, views(), hyperparameters(step))["swapped"])
        for queue in method.loss.queues:
            queue.update()
    gradients = torch.autograd.grad(sum(losses), parameters)
    queues = torch.stack([queue.keys for queue in method.loss.queues])
    return {"losses": torch.stack(losses).detach(), "gradients": gradients, "queues": queues}


def learn_on_a_share(rank: int) -> dict[str, Any]:
    return learn(slice(2 * rank, 2 * rank + 2))


def test_two_processes_assign_and_learn_as_one(pool: WorkerPool) -> None:
    expected, results = learn(slice(None)), pool.run(learn_on_a_share)
    torch.testing.assert_close(sum(r["losses"] for r in results) / 2, expected["losses"])
    gradients = [sum(parts) / 2 for parts in zip(*(r["gradients"] for r in results), strict=True)]
    torch.testing.assert_close(gradients, list(expected["gradients"]), rtol=1e-4, atol=1e-6)
    for result in results:
        torch.testing.assert_close(result["queues"], expected["queues"])
