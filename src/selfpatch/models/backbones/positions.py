"""Position embeddings of a ViT: fixed ones, and stored ones at other grids, as two matrix products.

torch's bicubic interpolation sums its gradient in a different order at each run on a GPU, and its exporter loses the
scale factors; a product does neither.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfpatch.core.constants import cached_constant
from selfpatch.ops.resampling import cubic

Interpolation = Literal["released", "size"]


def add_positions(trunk: VisionTransformer, embedded: Tensor, kind: Interpolation) -> Tensor:
    """Return the input of the first block: positions added, CLS and register tokens in front.

    `released` interpolates bicubically without antialias, by a scale factor with 0.1 added to the grid's side, which
    shifts the sampling coordinates a little (the code of DINO, iBOT, SelfPatch, SERE and DINOv2); `size` interpolates
    by the size, with antialias (timm). Embedded patches are [B, h, w, D], the result is [B, prefix + h * w, D].
    """
    B, h, w, _ = embedded.shape
    x, first = embedded.flatten(1, 2), [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    tokens = torch.cat([token.expand(1, -1, -1) for token in first], dim=1) if first else None
    if trunk.pos_embed is not None:
        prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        x = x + _interpolate(trunk.pos_embed[0, prefix:], h, w, kind)
        tokens = tokens + trunk.pos_embed[:, :prefix] if tokens is not None and prefix else tokens
    if tokens is not None:
        x = torch.cat([tokens.expand(B, -1, -1), x], dim=1)
    return trunk.pos_drop(x)


def _interpolate(stored: Tensor, h: int, w: int, kind: Interpolation) -> Tensor:
    """Interpolate stored positions: [G * G, D] -> [h * w, D]."""
    G = int(stored.shape[0] ** 0.5)
    square = stored.view(G, G, -1)
    if not torch.compiler.is_compiling() and (h, w) == (G, G):  # a compiler may see symbols, which it must not compare
        return stored
    rows, columns = interpolation_weights(h, w, G, kind, stored.device)
    if stored.is_meta:  # a dry run needs the shape alone, and there is no autocast on the meta device
        return stored.new_empty(h * w, stored.shape[1])
    with torch.autocast(stored.device.type, enabled=False):
        return torch.einsum("ig,jk,gkd->ijd", rows, columns, square.float()).flatten(0, 1)


@cached_constant
def interpolation_weights(h: int, w: int, G: int, kind: Interpolation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the weights of G stored rows and columns in each of h rows and w columns, [h, G] and [w, G]."""
    height, width = (torch.ones(side, device=device).sum() for side in (h, w))  # tensors, so that a graph compares
    if kind == "size":
        return _by_size(h, height, G), _by_size(w, width, G)
    stored = (height == G) & (width == G)
    return _as_released(h, height, G, stored), _as_released(w, width, G, stored)


def _as_released(count: int, side: Tensor, G: int, stored: Tensor) -> Tensor:
    """Return weights for the scale factor (count + 0.1) / G; the identity at the stored grid."""
    scale = torch.where(stored, torch.ones_like(side), G / (side + 0.1))
    centres = (torch.arange(count, device=side.device) + 0.5) * scale - 0.5
    distance = (centres[:, None] - torch.arange(-2, G + 2, device=side.device)).abs()
    taps = cubic(distance, -0.75)  # with two more stored rows on each side, which repeat the border
    before, after = taps[:, :2].sum(1, keepdim=True), taps[:, -2:].sum(1, keepdim=True)
    return taps[:, 2:-2] + F.pad(before, (0, G - 1)) + F.pad(after, (G - 1, 0))


def _by_size(count: int, side: Tensor, G: int) -> Tensor:
    """Return weights for a size, with antialias."""
    scale = G / side
    centres = (torch.arange(count, device=side.device) + 0.5) * scale
    distance = (centres[:, None] - torch.arange(G, device=side.device) - 0.5).abs()
    taps = cubic(distance / scale.clamp(min=1), -0.5)
    return taps / taps.sum(1, keepdim=True)


def sincos_positions(grid: int, dim: int) -> Tensor:
    """Return fixed 2-D position embeddings [grid * grid, D] (MoCo-v3, arXiv 2104.02057, section 5.1).

    For row y and column x, with w_i = 10000^(-4 i / D) and a quarter of the width for each part:

        (sin(y w_i), cos(y w_i), sin(x w_i), cos(x w_i))

    Raises:
        ValueError: 4 does not divide the width.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width that 4 divides, not {dim}; change backbone.embed_dim")
    frequencies = torch.exp(torch.arange(dim // 4) * (-4 * math.log(10000) / dim))
    index = torch.arange(grid)
    rows, columns = (axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(index, index, indexing="ij"))
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)
