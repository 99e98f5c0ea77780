"""Cache of constant tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from selfpatch.core.constants import cached_constant


def test_constants_are_computed_once_and_are_real() -> None:
    calls = []

    @cached_constant
    def ones(count: int) -> Tensor:
        calls.append(count)
        return torch.ones(count)

    with FakeTensorMode(), torch.inference_mode():
        first = ones(3)
    assert not isinstance(first, FakeTensor)
    assert not first.is_inference()
    assert ones(3) is first
    ones(4)
    assert calls == [3, 4]
