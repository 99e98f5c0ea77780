"""Prototype heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from selfpatch.models.heads import PrototypeHead, PrototypeHeadConfig
from selfpatch.models.param_groups import param_groups


def config(**settings: bool) -> PrototypeHeadConfig:
    return PrototypeHeadConfig(num_prototypes=10, hidden_dim=8, bottleneck_dim=4, **settings)


def head(**settings: bool) -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(6, config(**settings))


def test_bottleneck_and_prototypes_have_norm_one() -> None:
    scores = head()(torch.randn(3, 5, 6))
    torch.testing.assert_close(scores.bottleneck.norm(dim=-1), torch.ones(3, 5))
    torch.testing.assert_close(scores.prototypes.norm(dim=-1), torch.ones(10))
    assert scores.logits().shape == (3, 5, 10)
    assert scores.logits().abs().max() <= 1 + 1e-6


def test_logits_and_gradients_are_those_of_torchs_weight_norm() -> None:
    ours, tokens = head(norm_last_layer=False), torch.randn(7, 6)
    with torch.no_grad():
        ours.last_layer.weight_g.uniform_(0.5, 2.0)
    theirs = weight_norm(nn.Linear(4, 10, bias=False), dim=0)
    parts = theirs.parametrizations.weight
    with torch.no_grad():
        parts.original0.copy_(ours.last_layer.weight_g)
        parts.original1.copy_(ours.last_layer.weight_v)
    logits = ours(tokens).logits()
    expected = theirs(F.normalize(ours.mlp(tokens), dim=-1))
    torch.testing.assert_close(logits, expected)
    upstream = torch.randn_like(logits)
    gradients = torch.autograd.grad((logits * upstream).sum(), [ours.last_layer.weight_g, ours.last_layer.weight_v])
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * upstream).sum(), [parts.original0, parts.original1])
    )


def test_the_gain_is_frozen_unless_asked_for() -> None:
    frozen, trainable = head(), head(norm_last_layer=False)
    assert not frozen.last_layer.weight_g.requires_grad
    assert trainable.last_layer.weight_g.requires_grad
    assert torch.equal(frozen.last_layer.weight_g, torch.ones(10, 1))
    (decayed, _) = param_groups(trainable)
    assert any(p is trainable.last_layer.weight_g for p in decayed["params"])
    assert not any(p is frozen.last_layer.weight_g for group in param_groups(frozen) for p in group["params"])


def test_layers_of_the_mlp() -> None:
    kinds = [type(part).__name__ for part in head().mlp]
    assert kinds == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    kinds = [type(part).__name__ for part in head(head_norm=True).mlp]
    assert kinds == ["Linear", "BatchNorm", "GELU", "Linear", "BatchNorm", "GELU", "Linear"]
    assert [type(part).__name__ for part in PrototypeHead(6, config(), num_layers=1).mlp] == ["Linear"]
