"""Projection heads that compare tokens with prototypes."""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.linear import gelu_linear


@settings
class PrototypeHeadConfig:
    """Settings of a projection head with prototypes (DINO, arXiv 2104.14294, appendix C)."""

    num_prototypes: PositiveInt = 65536
    """Number of prototypes."""
    hidden_dim: PositiveInt = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: PositiveInt = 256
    """Width of the head's output, which is compared with the prototypes."""
    head_norm: bool = False
    """Batch normalisation after each hidden layer of the head; helps small heads."""
    norm_last_layer: bool = True
    """Fixed norm of 1 for every prototype, instead of a learned one."""


@settings
class MLPHeadConfig:
    """Settings of a head of patches without prototypes (PaKA, NeCo) or below them (Leopart)."""

    hidden_dim: PositiveInt = 2048
    """Width of the head's two hidden layers."""
    bottleneck_dim: PositiveInt = 256
    """Width of the head's output."""


def mlp_head(dim: int, config: MLPHeadConfig) -> nn.Sequential:
    """Build an MLP D - hidden - hidden - bottleneck with GELU, for tokens of width `dim`."""
    return mlp([dim, config.hidden_dim, config.hidden_dim, config.bottleneck_dim], norm=False, gelu=True)


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
        """Return the prototypes [K, E]."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)  # one pass, as `weight_norm` of torch.nn.utils takes


class PrototypeHead(nn.Module):
    """DINO's projection head: an MLP to a normalised bottleneck, and prototypes (arXiv 2104.14294, appendix C).

    Args:
        dim: width of the input tokens.
        config: number of prototypes and the head's layers.
        num_layers: number of linear layers in the MLP.
    """

    def __init__(self, dim: int, config: PrototypeHeadConfig, *, num_layers: int = 3) -> None:
        super().__init__()
        widths = [dim, *[config.hidden_dim] * (num_layers - 1), config.bottleneck_dim]
        self.mlp = mlp(widths, norm=config.head_norm, gelu=True)
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.last_layer = Prototypes(
            config.num_prototypes, config.bottleneck_dim, trainable_gain=not config.norm_last_layer
        )

    def forward(self, tokens: Tensor) -> Scores:
        """Return the scores of tokens [..., D] against the prototypes."""
        first, *others = self.mlp
        x = first(tokens)
        for part in others:
            if isinstance(part, nn.Linear):
                x = gelu_linear(x, part.weight, part.bias)
            elif not isinstance(part, nn.GELU):
                x = part(x)
        return Scores(F.normalize(x.float(), dim=-1), self.last_layer())
