"""Pools, heads and centres: what sits on top of a backbone."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.linear import gelu_linear


class Prototypes(nn.Module):
    """K prototypes as the weight-normalised last layer of DINO: w_k = g_k v_k / |v_k|.

    Args:
        trainable_gain: learn g; otherwise it stays 1 (`norm_last_layer` of the released code).
    """

    def __init__(self, num_prototypes: int, dim: int, *, trainable_gain: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=trainable_gain)
        self.weight_v = nn.Parameter(nn.Linear(dim, num_prototypes, bias=False).weight.detach())

    def forward(self) -> Tensor:
        """[K, E]."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)  # one pass, as `weight_norm` of torch.nn.utils takes


class PrototypeHead(nn.Module):
    """DINO's projection head: an MLP to a normalised bottleneck, and prototypes (arXiv 2104.14294, appendix C).

    Args:
        dim: width of the tokens that come in.
        layers: linear layers of the MLP.
        norm: batch normalisation after each hidden layer.
    """

    def __init__(
        self,
        dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm: bool = False,
        trainable_gain: bool = False,
    ) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        parts: list[nn.Module] = []
        for i, (wide, narrow) in enumerate(pairwise(widths)):
            parts.append(nn.Linear(wide, narrow))
            if i < layers - 1:
                parts += [BatchNorm(narrow), nn.GELU()] if norm else [nn.GELU()]
        self.mlp = nn.Sequential(*parts)
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.last_layer = Prototypes(num_prototypes, bottleneck_dim, trainable_gain=trainable_gain)

    def forward(self, tokens: Tensor) -> Scores:
        """Tokens [..., D] -> their scores against the prototypes."""
        first, *others = self.mlp
        x = first(tokens)
        for part in others:
            if isinstance(part, nn.Linear):
                x = gelu_linear(x, part.weight, part.bias)
            elif not isinstance(part, nn.GELU):
                x = part(x)
        return Scores(F.normalize(x.float(), dim=-1), self.last_layer())


class PatchPrototypes(nn.Module):
    """Prototypes by themselves, for patches whose bottleneck another head makes (iBOT's heads that are not shared)."""

    def __init__(self, num_prototypes: int, dim: int, *, trainable_gain: bool = False) -> None:
        super().__init__()
        self.last_layer = Prototypes(num_prototypes, dim, trainable_gain=trainable_gain)

    def forward(self) -> Tensor:
        """[K, E]."""
        return self.last_layer()
