"""Position embeddings at other grids: torch's own interpolation, as products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfpatch.models.backbones.positions import Interpolation, add_positions, interpolation_weights

GRIDS = pytest.mark.parametrize(("h", "w"), [(5, 5), (5, 6), (3, 4), (9, 13), (1, 2)])
KINDS = pytest.mark.parametrize("kind", ["released", "size"])
G = 5


def by_torch(stored: Tensor, h: int, w: int, kind: Interpolation) -> Tensor:
    """[G, G, D] -> [h, w, D]"""
    if (h, w) == (G, G):
        return stored
    how = {"size": (h, w), "antialias": True}
    if kind == "released":
        how = {"scale_factor": ((h + 0.1) / G, (w + 0.1) / G)}
    return F.interpolate(stored.permute(2, 0, 1)[None], mode="bicubic", **how)[0].permute(1, 2, 0)


@GRIDS
@KINDS
def test_the_products_are_torchs_interpolation_and_so_are_their_gradients(kind: Interpolation, h: int, w: int) -> None:
    stored = torch.randn(G, G, 3, generator=torch.manual_seed(0)).requires_grad_()
    rows, columns = interpolation_weights(h, w, G, kind, torch.device("cpu"))
    ours, theirs = torch.einsum("ig,jk,gkd->ijd", rows, columns, stored), by_torch(stored, h, w, kind)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    upstream = torch.randn_like(ours)
    gradients = [torch.autograd.grad(x, stored, upstream, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"class_token": False, "global_pool": ""}, {"reg_tokens": 2, "no_embed_class": True}]
)
@GRIDS
def test_positions_by_size_are_timms(settings: dict, h: int, w: int) -> None:
    trunk = VisionTransformer(
        img_size=40, patch_size=8, embed_dim=8, depth=1, num_heads=2, dynamic_img_size=True, **settings
    )
    torch.nn.init.normal_(trunk.pos_embed)
    embedded = torch.randn(2, h, w, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            add_positions(trunk, embedded, "size"), trunk._pos_embed(embedded), rtol=0, atol=2e-5
        )


@KINDS
def test_the_stored_grid_is_used_as_it_is(kind: Interpolation) -> None:
    rows, columns = interpolation_weights(G, G, G, kind, torch.device("cpu"))
    torch.testing.assert_close(rows, torch.eye(G), rtol=0, atol=1e-6)
    assert torch.equal(rows, columns)
