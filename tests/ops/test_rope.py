"""Rotary positions against the loop over patches and pairs of channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfpatch.core.reference import use_references
from selfpatch.ops.rope import rope_periods, rope_rotation, rotate_patches


def rotated_in_loops(x: Tensor, h: int, w: int, scale: float = 1.0) -> Tensor:
    """One head [prefix + h * w, d], rotated by the formulas of the module."""
    out, d = x.clone(), x.shape[1]
    prefix = len(x) - h * w
    for i in range(h):
        for j in range(w):
            y, column = scale * (2 * (i + 0.5) / h - 1), scale * (2 * (j + 0.5) / w - 1)
            angles = [2 * math.pi * c / 100 ** (4 * k / d) for c in (y, column) for k in range(d // 4)]
            token = prefix + i * w + j
            for c, angle in enumerate(angles):
                a, b = x[token, c], x[token, c + d // 2]
                out[token, c] = a * math.cos(angle) - b * math.sin(angle)
                out[token, c + d // 2] = a * math.sin(angle) + b * math.cos(angle)
    return out


@pytest.mark.parametrize(("h", "w", "prefix", "scale"), [(2, 3, 5, 1.0), (1, 4, 0, 0.7), (3, 1, 1, 1.9)])
@pytest.mark.parametrize("plain", [False, True])
def test_a_rotation_is_the_loop(h: int, w: int, prefix: int, scale: float, plain: bool) -> None:
    x = torch.randn(2, 3, prefix + h * w, 8, generator=torch.manual_seed(0))
    rotation = rope_rotation(h, w, rope_periods(8), scale)
    with use_references() if plain else torch.enable_grad():
        found = rotate_patches(x, rotation)
    for image in range(2):
        for head in range(3):
            expected = rotated_in_loops(x[image, head], h, w, scale)
            torch.testing.assert_close(found[image, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_rotation_has_the_gradient_and_type_of_its_reference(dtype: torch.dtype, tolerance: float) -> None:
    results = []
    rotation = rope_rotation(3, 2, rope_periods(16))
    for plain in (False, True):
        generator = torch.manual_seed(1)
        x = torch.randn(2, 2, 7, 16, generator=generator).to(dtype).requires_grad_()
        weight = torch.randn(2, 2, 7, 16, generator=generator).to(dtype)
        with use_references() if plain else torch.enable_grad():
            out = rotate_patches(x, rotation)
        (out * weight).sum().backward()
        assert out.dtype == dtype
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_a_rotation_keeps_lengths_and_shows_distances_alone() -> None:
    """On a grid of one row, the product of a query and a key depends on how many columns lie between them."""
    query, key = torch.randn(2, 16, generator=torch.manual_seed(2))
    rotation = rope_rotation(1, 5, rope_periods(16))
    queries, keys = (rotate_patches(x.expand(5, 16), rotation) for x in (query, key))
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(5))
    products = queries @ keys.T
    for apart in range(-4, 5):
        diagonal = products.diagonal(apart)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_a_width_that_has_no_quarters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a width that 4 divides, not 6; change backbone.num_heads"):
        rope_periods(6)
