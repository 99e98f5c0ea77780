"""FLOPs and memory of a computation that is not computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfpatch.core.cost import measure, measure_batch
from selfpatch.core.dry_run import dry_run
from selfpatch.models.backbones.build import build_backbone, named_backbone_config

CPU = torch.device("cpu")


def vit(side: int = 32) -> nn.Module:
    config = named_backbone_config(
        "vit_tiny", grid=side // 8, position_embedding="released", patch_size=8, embed_dim=48, depth=3, num_heads=3
    )
    return build_backbone(config).train()


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes of the tensors that a real forward pass keeps for the backward pass, without parameters."""
    stored: dict[int, Tensor] = {}
    own = {p.untyped_storage()._cdata for p in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            stored[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(images).patches.sum()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in stored.values())


def test_flops_of_a_vit_follow_the_formula() -> None:
    images, side, patch, width, depth = 2, 32, 8, 48, 3
    with dry_run():
        network = vit(side)
    cost = measure(lambda: network(torch.zeros(images, 3, side, side)).patches.sum(), [network], CPU)
    patches = (side // patch) ** 2
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    expected = 2 * images * (patches * 3 * patch**2 * width + depth * block)
    assert cost.forward_flops == expected
    assert 2.9 * expected < cost.flops < 3.3 * expected, "a backward pass takes two, fused attention recomputes one"


def test_activations_are_those_of_a_real_forward_pass() -> None:
    with dry_run():
        network = vit()
    cost = measure(lambda: network(torch.zeros(4, 3, 32, 32)).patches.sum(), [network], CPU)
    real = saved_bytes(vit(), torch.zeros(4, 3, 32, 32))
    assert real <= cost.activation_bytes < 1.2 * real, "the tensors of the last layers come on top"


def test_a_pass_without_gradient_keeps_little() -> None:
    with dry_run():
        network = vit()

    def forward() -> None:
        with torch.no_grad():
            network(torch.zeros(4, 3, 32, 32))

    without = measure(forward, [network], CPU)
    with_gradient = measure(lambda: network(torch.zeros(4, 3, 32, 32)).patches.sum(), [network], CPU)
    assert without.flops == without.forward_flops == with_gradient.forward_flops
    assert without.activation_bytes < with_gradient.activation_bytes / 2


def test_bf16_needs_less() -> None:
    with dry_run():
        network = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))
    full, half = (
        measure(lambda: network(torch.zeros(1024, 256)).sum(), [network], CPU, dtype)
        for dtype in (None, torch.bfloat16)
    )
    assert half.flops == full.flops
    assert half.activation_bytes < 0.75 * full.activation_bytes


def test_large_batches_are_extrapolated() -> None:
    with dry_run():
        network = vit()

    def loss(images: int) -> Tensor:
        return network(torch.zeros(images, 3, 32, 32)).patches.sum()

    real, quick = measure(lambda: loss(384), [network], CPU), measure_batch(loss, 384, [network], CPU)
    assert (quick.forward_flops, quick.flops) == (real.forward_flops, real.flops)
    assert abs(quick.activation_bytes / real.activation_bytes - 1) < 0.01
    assert measure_batch(loss, 3, [network], CPU) == measure(lambda: loss(3), [network], CPU)


def test_constants_stay_real() -> None:
    """Interpolation weights that are first needed while a cost is measured serve real networks afterwards."""
    with dry_run():
        network = vit()
    measure(lambda: network(torch.zeros(1, 3, 72, 40)).patches.sum(), [network], CPU)
    assert vit()(torch.zeros(1, 3, 72, 40)).patches.sum().isfinite()
