"""Low-rank adapters: nothing changes before they learn, and a merged layer computes what the adapted one did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfpatch.models.layers.keyless_bias import KeylessBias
from selfpatch.models.layers.lora import LoraLinear, merge_adapter_tensors, merge_adapters


@pytest.mark.parametrize("kind", [nn.Linear, KeylessBias])
def test_an_adapter_changes_nothing_at_first_and_is_merged_exactly(kind: Callable[[int, int], nn.Linear]) -> None:
    torch.manual_seed(0)
    base, x = kind(5, 6), torch.randn(2, 3, 5)
    network = nn.Sequential(nn.Sequential(base), nn.ReLU())
    expected = network(x)
    network[0][0] = LoraLinear(base, rank=2, alpha=3.0)
    assert torch.equal(network(x), expected)
    adapter = network[0][0]
    nn.init.normal_(adapter.lora_b)
    plain = base.weight + 1.5 * adapter.lora_b @ adapter.lora_a
    learned = network(x)
    assert not torch.allclose(learned, expected)
    merged = merge_adapter_tensors(network.state_dict(), "it")
    torch.testing.assert_close(merged["0.0.weight"], plain)
    merge_adapters(network)
    assert network[0][0] is base
    assert list(network.state_dict()) == list(merged) == ["0.0.weight", "0.0.bias"]
    torch.testing.assert_close(network(x), learned)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, merged[name])


def test_names_that_only_look_like_those_of_adapters_stay() -> None:
    state = {"base.weight": torch.ones(1), "a.base.weight": torch.ones(1), "weight": torch.ones(1)}
    assert merge_adapter_tensors(state, "it") == state


@pytest.mark.parametrize("change", [{"lora_b": None}, {"lora_scale": None}, {"lora_a": torch.ones(2, 7)}], ids=str)
def test_an_adapter_that_does_not_fit_its_layer_is_refused(change: dict[str, Tensor | None]) -> None:
    network = nn.ModuleDict({"qkv": LoraLinear(nn.Linear(5, 6), 2, 1.0)})
    state = network.state_dict() | {f"qkv.{name}": tensor for name, tensor in change.items()}
    with pytest.raises(ValueError, match=r"run: the adapter of qkv does not fit; use an earlier checkpoint"):
        merge_adapter_tensors({name: tensor for name, tensor in state.items() if tensor is not None}, "run")
