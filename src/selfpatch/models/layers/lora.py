"""Low-rank adapters of linear layers (LoRA, arXiv 2106.09685): a few parameters in place of a layer's own.

    y = (W + alpha / r * B A) x + bias        A [r, D] random, B [E, r] zero at first, W and bias frozen

A network with adapters has the features of the one without before the first step, and once it is trained, those of the
one whose weights are W + alpha / r * B A, which needs no adapters.

A teacher shares W, and has moving averages of A and B; its update is the product of the two, not a mean of products.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selfpatch.models.layers.keyless_bias import used_bias
from selfpatch.ops.linear import LowRank, low_rank_linear, low_rank_linear_reference

ADAPTER = ("lora_a", "lora_b", "lora_scale")
"""Names of an adapter's tensors."""


class LoraLinear(nn.Module):
    """Frozen linear layer with an adapter.

    Args:
        base: the layer, which is frozen.
        rank: rank r of the update.
        alpha: the update is multiplied by alpha / rank.

    Attributes:
        lora_a: A [r, D], drawn as in the released code.
        lora_b: B [E, r].
        lora_scale: the factor, saved with the weights so that they can be merged without the run's settings.
    """

    lora_scale: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.register_buffer("lora_scale", torch.tensor(alpha / rank))

    @property
    def update(self) -> LowRank:
        """Update of the layer's weight."""
        return LowRank(self.lora_a, self.lora_b * self.lora_scale)

    @property
    def weight(self) -> Tensor:
        """Weight [E, D] with the update added, which attention of timm's class `Eva` reads."""
        return self.base.weight + self.update.b @ self.lora_a

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., E]."""
        linear = low_rank_linear_reference if torch.compiler.is_compiling() else low_rank_linear
        return linear(x, self.base.weight, used_bias(self.base), self.update)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the base layer with the update added to its weight."""
        self.base.weight.copy_(self.weight)
        return self.base


def base_and_update(linear: nn.Module) -> tuple[nn.Linear, LowRank | None]:
    """Return a linear layer and the update of its weight, if it has an adapter."""
    if isinstance(linear, LoraLinear):
        return linear.base, linear.update
    assert isinstance(linear, nn.Linear)
    return linear, None


def merge_adapters(network: nn.Module) -> None:
    """Replace each layer with an adapter in a network by the merged layer, in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLinear):
            network.set_submodule(name, module.merged())


def merge_adapter_tensors(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the state dict of a network with its adapters merged, as `merge_adapters` would leave it.

    Raises:
        ValueError: a tensor of an adapter is missing or has another shape; the error names the `source`.
    """
    merged = {}
    for key, tensor in state.items():
        layer, base, name = key.rpartition(".base.")
        if key.endswith(ADAPTER):
            continue
        if not base or f"{layer}.lora_a" not in state:
            merged[key] = tensor
            continue
        if name == "weight":
            try:
                a, b, scale = (state[f"{layer}.{part}"] for part in ADAPTER)
                tensor = torch.addmm(tensor, b * scale, a)
            except (LookupError, RuntimeError):
                raise ValueError(f"{source}: the adapter of {layer} does not fit; use an earlier checkpoint") from None
        merged[f"{layer}.{name}"] = tensor
    return merged
