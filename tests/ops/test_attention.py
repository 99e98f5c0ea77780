"""Attention within images of several sizes: each image is by itself, whatever is computed at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.core.reference import use_references
from selfpatch.ops import attention as module
from selfpatch.ops.attention import (
    Groups,
    attention,
    attention_reference,
    has_varlen_kernel,
    image_offsets,
    packed_attention,
    packed_attention_reference,
)
from tests.helpers.devices import NEEDS_CUDA

GROUPS: Groups = ((3, 10), (5, 4), (1, 7))
TOKENS = 3 * 10 + 5 * 4 + 7


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    generator = torch.manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]


def with_gradients(function: Any, parts: list[Tensor], *more: Any) -> list[Tensor]:
    output = function(*parts, *more)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
    return [output, *torch.autograd.grad((output * weights).sum(), parts)]


def within_images(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with all pairs of tokens, of which those of two images are hidden."""
    image = torch.repeat_interleave(torch.tensor([n for images, n in GROUPS for _ in range(images)]))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(image[:, None] != image, float("-inf")).softmax(-1) @ value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("tokens", [1, 17, module.MAX_PAIRED_TOKENS + 1])
def test_attention_is_its_reference(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    parts = inputs((1, 2, tokens, 8), dtype)
    expected = with_gradients(attention_reference, parts)
    torch.testing.assert_close(with_gradients(attention, parts), expected, rtol=tolerance, atol=tolerance)
    with use_references():
        assert torch.equal(attention(*parts), expected[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_tokens_attend_to_their_image_alone(dtype: torch.dtype, tolerance: float) -> None:
    parts = inputs((2, TOKENS, 8), dtype)
    expected = with_gradients(within_images, parts)
    for function in (packed_attention, packed_attention_reference):
        found = with_gradients(function, parts, GROUPS, None)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_one_kernel_for_all_sizes_gets_the_first_token_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is one of CUDA; this stands in for it, with the layout and the arguments that torch documents."""

    def varlen_attn(
        q: Tensor, k: Tensor, v: Tensor, first_q: Tensor, first_k: Tensor, max_q: int, max_k: int
    ) -> Tensor:
        assert first_q is first_k
        assert first_q.dtype == torch.int32
        lengths = first_q.diff().tolist()
        assert (max_q, max_k) == (max(lengths),) * 2
        images = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([attention_reference(*(x.transpose(0, 1) for x in parts)).transpose(0, 1) for parts in images])

    parts, offsets = inputs((2, TOKENS, 8), torch.float32), image_offsets(GROUPS, torch.device("cpu"))
    assert offsets.tolist() == [0, 10, 20, 30, 34, 38, 42, 46, 50, 57]
    expected = with_gradients(packed_attention_reference, parts, GROUPS, offsets)
    monkeypatch.setattr(module, "varlen_attn", varlen_attn)
    torch.testing.assert_close(with_gradients(packed_attention, parts, GROUPS, offsets), expected)


def test_the_kernel_is_for_16_bits_on_recent_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu, bf16 = torch.device("cpu"), torch.device("cuda:0"), torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert has_varlen_kernel(gpu, bf16, 64)
    cases = [(cpu, bf16, 64), (gpu, torch.float32, 64), (gpu, None, 64), (gpu, bf16, 20), (gpu, bf16, 264)]
    assert not any(has_varlen_kernel(*case) for case in cases)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not has_varlen_kernel(gpu, bf16, 64)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
def test_the_kernel_is_its_reference(device: str) -> None:
    parts = inputs((6, TOKENS, 64), torch.bfloat16, device)
    offsets = image_offsets(GROUPS, parts[0].device)
    expected = with_gradients(packed_attention_reference, parts, GROUPS, offsets)
    found = with_gradients(packed_attention, parts, GROUPS, offsets)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
