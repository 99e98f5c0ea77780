"""FLOPs and memory of a computation, found without computing it."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MAX_IMAGES = 64
"""Largest batch that is measured as it is."""


@dataclass(frozen=True)
class Cost:
    """Cost of one call."""

    forward_flops: int
    """FLOPs of the products of the forward pass: 2 for each multiplication and addition, as torch counts them."""
    flops: int
    """FLOPs with the backward pass, if the result has gradients."""
    activation_bytes: int
    """Largest sum of the tensors that exist at once in the forward pass, including those kept for the backward pass."""


def measure(
    function: Callable[[], Any], modules: Iterable[nn.Module], device: torch.device, autocast: torch.dtype | None = None
) -> Cost:
    """Measure a function that is run on fake tensors: shapes and types as on `device`, but no values and no memory.

    A Tensor that the function returns is differentiated. The function must not depend on values.

    Args:
        function: function of no arguments that makes its inputs itself, on `device`.
        modules: modules on the meta device that the function uses; they are left as fake tensors on `device`.
        device: device whose kernels are chosen.
        autocast: type of the products of the forward pass; if None, float32.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        for module in modules:
            if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
                module.to_empty(device=device)
        with _Counter() as counter:
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                result = function()
            forward_flops, activation_bytes = counter.flops, counter.peak
            if isinstance(result, Tensor) and result.requires_grad:
                result.backward()
    return Cost(forward_flops, counter.flops, activation_bytes)


def measure_batch(
    function: Callable[[int], Any],
    num_images: int,
    modules: Sequence[nn.Module],
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Cost:
    """Measure a function of the number of images; arguments as for `measure`.

    Costs are linear in the number of images, up to the chunks that losses work in. They are measured for at most
    `MAX_IMAGES`, and extrapolated from half and all of these, because chunks of a large batch take many operations.
    """
    if num_images <= MAX_IMAGES:
        return measure(lambda: function(num_images), modules, device, autocast)
    half, full = (
        measure(lambda images=images: function(images), modules, device, autocast)  # type: ignore[misc]
        for images in (MAX_IMAGES // 2, MAX_IMAGES)
    )
    more = 2 * (num_images - MAX_IMAGES) / MAX_IMAGES
    line = ((getattr(half, field.name), getattr(full, field.name)) for field in fields(Cost))
    return Cost(*(round(full_value + more * (full_value - half_value)) for half_value, full_value in line))


class _Counter(TorchDispatchMode):
    """Counts FLOPs, by the formulas of torch's `FlopCounterMode`, and the bytes of the tensors made inside that exist.

    `FlopCounterMode` itself also follows modules, which fails on a view of a parameter in a pass without gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.now, self.peak = 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage()._cdata)
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
