"""Attention within images: of one size, or of several sizes whose tokens form one sequence."""

from collections.abc import Iterator
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from selfpatch.core.constants import cached_constant
from selfpatch.core.reference import fast_path_of

MAX_PAIRED_TOKENS = 1024
"""Number of tokens of an image up to which the matrix of all pairs is formed if that is faster."""
MAX_FLASH_WIDTH = 256
"""Largest width of a head for `varlen_attn`."""

Groups = tuple[tuple[int, int], ...]
"""Number of images and number of tokens of each, for each size, in the order of a sequence of all their tokens."""


def attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v of queries, keys and values [..., H, N, d], with all pairs [..., H, N, N]."""
    return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1) @ value


@fast_path_of(attention_reference)
def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See `attention_reference`; fused where that is faster."""
    # On a CPU the fused attention is slow in bfloat16, backward above all.
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if slow and query.shape[-2] <= MAX_PAIRED_TOKENS:
        return attention_reference(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def packed_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, groups: Groups, offsets: Tensor | None
) -> Tensor:
    """Let the tokens of each image attend to one another: `attention` for each size.

    Args:
        query: [H, T, d], the tokens of all images, one image after the other.
        key: [H, T, d].
        value: [H, T, d].
        groups: sizes of the images.
        offsets: see `image_offsets`; None if one kernel for all sizes is not to be used. The reference never does.

    Returns:
        [H, T, d].
    """
    sizes = zip(*(_split(x, groups) for x in (query, key, value)), strict=True)
    attended = [attention(*of_size).transpose(1, 2).flatten(0, 1) for of_size in sizes]  # [n * N, H, d] each
    return torch.cat(attended).transpose(0, 1)


@fast_path_of(packed_attention_reference)
def packed_attention(query: Tensor, key: Tensor, value: Tensor, groups: Groups, offsets: Tensor | None) -> Tensor:
    """See `packed_attention_reference`; one kernel for all sizes if there are `offsets`."""
    if offsets is None:
        return packed_attention_reference(query, key, value, groups, offsets)
    longest = max(tokens for _, tokens in groups)
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))  # [T, H, d] each
    attended = varlen_attn(query, key, value, offsets, offsets, longest, longest)
    assert isinstance(attended, Tensor)
    return attended.transpose(0, 1)


def has_varlen_kernel(device: torch.device, dtype: torch.dtype | None, width: int) -> bool:
    """Return whether `varlen_attn` computes attention of a type with heads of a width on a device."""
    fits = dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= MAX_FLASH_WIDTH
    return device.type == "cuda" and fits and torch.cuda.get_device_capability(device) >= (8, 0)


@cached_constant
def image_offsets(groups: Groups, device: torch.device) -> Tensor:
    """Return the first token of each image, and the end of the last one, [images + 1] int32."""
    lengths = (tokens for images, tokens in groups for _ in range(images))
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _split(x: Tensor, groups: Groups) -> Iterator[Tensor]:
    """Yield the part of x [H, T, d] of each size as [n, H, N, d]."""
    parts = x.split([images * tokens for images, tokens in groups], dim=1)
    for part, size in zip(parts, groups, strict=True):
        yield part.unflatten(1, size).transpose(0, 1)
