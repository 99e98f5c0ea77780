"""MoCo-v2 against a plain loop over queries and keys."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Tokens, Views
from selfpatch.losses.info_nce import MoCoConfig
from selfpatch.methods.image.moco_v2 import MoCoV2
from tests.helpers.tiny import hyperparameters

B, D, E, K, TEMP = 4, 6, 5, 8, 0.2


def make(**settings: int | float) -> tuple[MoCoV2, EncoderOutput, EncoderOutput]:
    """The method, and both sides with weights and tokens of their own; the student sees two local views more."""
    torch.manual_seed(0)
    method = MoCoV2(D, B, MoCoConfig(**({"out_dim": E, "queue_size": K} | settings)))
    grid = Tokens(None, torch.empty(2 * B, 2, 2, D), torch.empty(2 * B, 2, 2, D))
    sides = [EncoderOutput(torch.randn(V, B, D), (grid,), method.heads(), None) for V in (4, 2)]
    sides[1].heads["projector"].requires_grad_(False)
    return method, replace(sides[0], image=sides[0].image.requires_grad_()), sides[1]


def views(num_global: int = 2) -> Views:
    return Views(torch.empty(num_global, B, 3, 4, 4), None, torch.empty(num_global, B, 5), torch.arange(B))


def l2_normalize(x: Tensor) -> Tensor:
    return x / x.norm()


def plain_loss(method: MoCoV2, student: EncoderOutput, teacher: EncoderOutput) -> Tensor:
    total = torch.zeros(())
    for b in range(B):
        query = l2_normalize(student.heads["projector"](student.image[0, b]))
        key = l2_normalize(teacher.heads["projector"](teacher.image[1, b])).detach()
        own = torch.exp(query @ key / TEMP)
        others = sum(torch.exp(query @ negative / TEMP) for negative in method.queue.keys)
        total = total - torch.log(own / (own + others))
    return total / B


def test_loss_and_gradients_are_the_plain_ones() -> None:
    method, student, teacher = make()
    losses = method(student, teacher, views(), hyperparameters())
    expected = plain_loss(method, student, teacher)
    assert losses.keys() == method.loss_weights.keys()
    torch.testing.assert_close(losses["contrast"], expected)
    learned = [student.image, *student.heads["projector"].parameters()]
    gradients = torch.autograd.grad(losses["contrast"], learned)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, learned))
    assert gradients[0][0].abs().min() > 0
    assert not gradients[0][1:].any(), "only the first view asks"


def test_nothing_flows_to_the_teacher() -> None:
    method, student, teacher = make()
    teacher.heads["projector"].requires_grad_(True)
    teacher = replace(teacher, image=teacher.image.requires_grad_())
    method(student, teacher, views(), hyperparameters())["contrast"].backward()
    assert teacher.image.grad is None
    assert all(parameter.grad is None for parameter in teacher.heads["projector"].parameters())
    assert method.queue.keys.grad is None


def test_the_second_views_keys_enter_the_queue_after_the_step() -> None:
    method, student, teacher = make()
    before = method.queue.keys.clone()
    method(student, teacher, views(), hyperparameters())
    assert torch.equal(method.queue.keys, before), "not before the step is done"
    method.queue.update()
    keys = torch.stack([l2_normalize(teacher.heads["projector"](token)) for token in teacher.image[1]])
    torch.testing.assert_close(method.queue.keys, torch.cat([keys, before[B:]]))


def test_a_failed_step_leaves_the_queue_alone() -> None:
    method, student, teacher = make()
    before = method.queue.keys.clone()
    method(student, teacher, views(), hyperparameters())
    method.queue.discard()
    method.queue.update()
    assert torch.equal(method.queue.keys, before)


def test_the_projector_has_two_layers_with_biases_and_no_batch_norm() -> None:
    layers = list(MoCoV2(D, B, MoCoConfig(queue_size=K)).heads()["projector"].children())
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear]
    shapes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == [(D, D), (D, 128)]
    assert all(layer.bias is not None for layer in layers if isinstance(layer, nn.Linear))
    assert make(hidden_dim=3)[0].heads()["projector"][0].out_features == 3


def test_the_defaults_are_the_published_ones() -> None:
    method = MoCoV2(D, 256, MoCoConfig())
    assert (method.loss.temp, method.queue.keys.shape) == (0.2, (65536, 128))


def test_at_a_high_temperature_all_keys_are_alike() -> None:
    method, student, teacher = make(temp=1000.0)
    loss = method(student, teacher, views(), hyperparameters())["contrast"]
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + K)), rtol=1e-3, atol=0)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"moco_v2.queue_size is 10, which the batch of 4 images does not divide"):
        MoCoV2(D, B, MoCoConfig(queue_size=10))
    method, student, teacher = make()
    with pytest.raises(ValueError, match="MoCo-v2 compares 2 global crops of an image, but there are 3; make 2"):
        method(student, teacher, views(3), hyperparameters())
