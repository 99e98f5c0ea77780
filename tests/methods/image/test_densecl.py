"""DenseCL against plain loops over images and positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfpatch.core.types import EncoderOutput, Tokens, Views
from selfpatch.losses.info_nce import MoCoConfig
from selfpatch.methods.image.densecl import DenseCL
from tests.helpers.tiny import hyperparameters

B, D, E, K, TEMP = 3, 6, 5, 9, 0.2
GRID = (2, 3)
N = GRID[0] * GRID[1]


def make(**settings: int | float) -> tuple[DenseCL, EncoderOutput, EncoderOutput]:
    """The method, and both sides with weights and tokens of their own; the student sees two local views more."""
    torch.manual_seed(0)
    method = DenseCL(D, B, MoCoConfig(**({"out_dim": E, "queue_size": K} | settings)))
    sides = []
    for V in (4, 2):
        patches, local = torch.randn(2 * B, *GRID, D), torch.randn(2 * B, 1, 1, D)
        grids = (Tokens(None, patches, torch.randn_like(patches)), Tokens(None, local, local))[: V // 2]
        sides.append(EncoderOutput(torch.randn(V, B, D), grids, method.heads(), None))
    for head in sides[1].heads.values():
        head.requires_grad_(False)
    for tensor in (sides[0].image, sides[0].tokens_per_resolution[0].patches):
        tensor.requires_grad_()
    return method, sides[0], sides[1]


def views(num_global: int = 2) -> Views:
    return Views(torch.empty(num_global, B, 3, 4, 4), None, torch.empty(num_global, B, 5), torch.arange(B))


def l2_normalize(x: Tensor) -> Tensor:
    return x / x.norm()


def plain_info_nce(query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    own = torch.exp(query @ key / TEMP)
    return -torch.log(own / (own + sum(torch.exp(query @ negative / TEMP) for negative in negatives)))


def plain_losses(method: DenseCL, student: EncoderOutput, teacher: EncoderOutput) -> dict[str, Tensor]:
    contrast, dense = torch.zeros(()), torch.zeros(())
    for b in range(B):
        query = l2_normalize(student.heads["projector"](student.image[0, b]))
        key = l2_normalize(teacher.heads["projector"](teacher.image[1, b])).detach()
        contrast = contrast + plain_info_nce(query, key, method.queue.keys) / B
        first = student.tokens_per_resolution[0].patches[b].flatten(0, 1)  # view-major: view 0 of image b
        second = teacher.tokens_per_resolution[0].patches[B + b].flatten(0, 1)
        for i in range(N):
            similarity = [torch.cosine_similarity(first[i], second[j], dim=0) for j in range(N)]
            match = max(range(N), key=lambda j: float(similarity[j].detach()))
            query = l2_normalize(student.heads["dense_projector"](first[i]))
            key = l2_normalize(teacher.heads["dense_projector"](second[match])).detach()
            dense = dense + plain_info_nce(query, key, method.dense_queue.keys) / (B * N)
    return {"contrast": contrast, "dense_contrast": dense}


def test_losses_and_gradients_are_the_plain_ones() -> None:
    method, student, teacher = make()
    losses = method(student, teacher, views(), hyperparameters())
    expected = plain_losses(method, student, teacher)
    assert losses.keys() == method.loss_weights.keys()
    torch.testing.assert_close(losses, expected)
    patches = student.tokens_per_resolution[0].patches
    learned = [student.image, patches, *(p for head in student.heads.values() for p in head.parameters())]
    gradients = torch.autograd.grad(sum(losses.values()), learned)
    torch.testing.assert_close(gradients, torch.autograd.grad(sum(expected.values()), learned))
    assert not gradients[0][1:].any(), "only the first view asks"
    assert not gradients[1][B:].any(), "only the first view asks"
    assert all(gradient.any() for gradient in gradients)


def test_the_two_losses_weigh_the_same() -> None:
    assert make()[0].loss_weights == {"contrast": 0.5, "dense_contrast": 0.5}


def test_nothing_flows_to_the_teacher() -> None:
    method, student, teacher = make()
    for head in teacher.heads.values():
        head.requires_grad_(True)
    inputs = [teacher.image.requires_grad_(), teacher.tokens_per_resolution[0].patches.requires_grad_()]
    sum(method(student, teacher, views(), hyperparameters()).values()).backward()
    assert all(tensor.grad is None for tensor in inputs)
    assert all(parameter.grad is None for head in teacher.heads.values() for parameter in head.parameters())


def test_both_queues_take_in_the_second_view_after_the_step() -> None:
    method, student, teacher = make()
    before = {name: getattr(method, name).keys.clone() for name in ("queue", "dense_queue")}
    method(student, teacher, views(), hyperparameters())
    assert torch.equal(method.queue.keys, before["queue"]), "not before the step is done"
    for queue in (method.queue, method.dense_queue):
        queue.update()
    keys = torch.stack([l2_normalize(teacher.heads["projector"](token)) for token in teacher.image[1]])
    grids = teacher.heads["dense_projector"](teacher.tokens_per_resolution[0].patches[B:])  # of view 1
    dense = torch.stack([l2_normalize(grid.mean((0, 1))) for grid in grids])
    torch.testing.assert_close(method.queue.keys, torch.cat([keys, before["queue"][B:]]))
    torch.testing.assert_close(method.dense_queue.keys, torch.cat([dense, before["dense_queue"][B:]]))


def test_the_two_projectors_are_separate() -> None:
    heads = make()[0].heads()
    assert heads.keys() == {"projector", "dense_projector"}
    assert not torch.equal(heads["projector"][0].weight, heads["dense_projector"][0].weight)


def test_the_defaults_are_the_published_ones() -> None:
    method = DenseCL(D, 256, MoCoConfig())
    assert method.loss.temp == method.dense_loss.temp == TEMP
    assert {queue.keys.shape for queue in (method.queue, method.dense_queue)} == {(65536, 128)}
    shapes = [p.shape for p in method.heads()["dense_projector"].parameters()]
    assert shapes == [(D, D), (D,), (128, D), (128,)]


def test_where_the_second_view_shows_something_does_not_matter() -> None:
    method, student, teacher = make()
    turned = teacher.tokens_per_resolution[0].patches.flip(1)  # rows swapped: the same features elsewhere
    moved = replace(teacher, tokens_per_resolution=(teacher.tokens_per_resolution[0]._replace(patches=turned),))
    losses = [method(student, side, views(), hyperparameters())["dense_contrast"] for side in (teacher, moved)]
    torch.testing.assert_close(*losses)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"densecl.queue_size is 10, which the batch of 3 images does not divide"):
        DenseCL(D, B, MoCoConfig(queue_size=10))
    method, student, teacher = make()
    with pytest.raises(ValueError, match="DenseCL compares 2 global crops of an image, but there are 1; make 2"):
        method(student, teacher, views(1), hyperparameters())
