"""Class attention over gathered positives: the fast form against the plain one, both against torch's attention."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.models.pooling import AveragePool, ClassAttentionPool, attend, gather_patches
from selfpatch.ops.neighbours import Positives, neighbour_table, top_positives

B, N, D, HEADS = 2, 12, 8, 2
Pool = TypeVar("Pool", bound=nn.Module)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(5))


def scrambled(module: Pool) -> Pool:
    """Weights large enough, biases and norms included, that every one of them shows in the result."""
    generator = torch.manual_seed(6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return module


def clip_positives(patches: Tensor) -> Positives:
    positives = top_positives(patches, 4, neighbour_table(3, 4, border="clip"))
    assert positives.valid is not None
    assert not positives.valid.all()
    return positives


def test_attention_equals_torchs_own() -> None:
    query, keys, values = features(5, 3, 4), features(5, 6, 3, 4), features(5, 6, 3, 4).flip(0)
    valid = torch.rand(5, 6, generator=torch.manual_seed(0)) < 0.6
    valid[:, 0] = True
    expected = F.scaled_dot_product_attention(
        query[:, :, None], keys.transpose(1, 2), values.transpose(1, 2), attn_mask=valid[:, None, None]
    )[:, :, 0]
    torch.testing.assert_close(attend(query, keys, values, valid), expected)
    torch.testing.assert_close(attend(query, keys, values), attend(query, keys, values, torch.ones_like(valid)))


def test_gathered_patches_are_those_of_the_same_image() -> None:
    x, indices = features(B, N, D), torch.randint(N, (B, N, 3), generator=torch.manual_seed(0))
    gathered = gather_patches(x, indices)
    for b in range(B):
        for i in range(N):
            assert torch.equal(gathered[b, i], x[b, indices[b, i]])


@pytest.mark.parametrize("border", ["wrap", "clip"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_pooled_positives_equal_the_reference_and_so_do_all_gradients(border: str, blocks: int) -> None:
    pool = scrambled(ClassAttentionPool(D, HEADS, blocks=blocks))
    given = features(B, N, D)
    positives = clip_positives(given) if border == "clip" else top_positives(given, 4, neighbour_table(3, 4))
    upstream = features(B, N, D).flip(0)
    results = []
    for pooled_by in (pool.pool_positives, pool.pool_positives_reference):
        patches = given.clone().requires_grad_()
        pooled = pooled_by(patches, positives)
        gradients = torch.autograd.grad((pooled * upstream).sum(), [patches, *pool.parameters()])
        results.append((pooled.detach(), *gradients))
    names = ["value", "patches", *(name for name, _ in pool.named_parameters())]
    for name, fast, plain in zip(names, *results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_each_set_is_pooled_by_itself_and_without_its_invalid_entries() -> None:
    """The definition, y(i) = h of the positives of i, one set at a time and no mask at all."""
    patches = features(B, N, D)
    positives = clip_positives(patches)
    assert positives.valid is not None
    for pool in (scrambled(ClassAttentionPool(D, HEADS)), scrambled(AveragePool(D))):
        pooled = pool.pool_positives(patches, positives)
        for b in range(B):
            for i in range(N):
                own = patches[b, positives.indices[b, i, positives.valid[b, i]]]
                torch.testing.assert_close(pooled[b, i], pool(own), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: ClassAttentionPool(D, HEADS), lambda: AveragePool(D)], ids=["attention", "mean"]
)
def test_positives_that_are_all_patches_give_the_image_token(make) -> None:
    pool, patches = scrambled(make()), features(B, N, D)
    order = torch.stack([torch.randperm(N, generator=torch.manual_seed(i)) for i in range(N)])  # a set has no order
    pooled = pool.pool_positives(patches, Positives(order.expand(B, -1, -1), None))
    torch.testing.assert_close(pooled, pool(patches)[:, None].expand(B, N, D), rtol=1e-4, atol=1e-5)


def test_all_other_patches_as_positives() -> None:
    pool, patches = scrambled(ClassAttentionPool(D, HEADS)), features(B, N, D)
    pooled = pool.pool_positives(patches, top_positives(patches, N - 1, neighbour_table(3, 4, "all")))
    for i in range(N):
        others = patches[:, [j for j in range(N) if j != i]]
        torch.testing.assert_close(pooled[:, i], pool(others), rtol=1e-4, atol=1e-5)


def class_attention_by_torch(pool: ClassAttentionPool, patches: Tensor) -> Tensor:
    """CaiT's class-attention blocks, written from the paper around torch's multi-head attention; one set [N, D]."""
    query = pool.query
    for block in pool.blocks:
        tokens = F.layer_norm(torch.cat([query, patches]), (D,), block.norm1.weight, block.norm1.bias, eps=1e-6)
        a = block.attn
        attended, _ = F.multi_head_attention_forward(
            tokens[:1], tokens, tokens, D, HEADS,
            in_proj_weight=None, in_proj_bias=torch.cat([a.q.bias, a.k.bias, a.v.bias]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=a.proj.weight, out_proj_bias=a.proj.bias, need_weights=False,
            use_separate_proj_weight=True, q_proj_weight=a.q.weight, k_proj_weight=a.k.weight, v_proj_weight=a.v.weight,
        )  # fmt: skip
        query = query + attended
        normed = F.layer_norm(query, (D,), block.norm2.weight, block.norm2.bias, eps=1e-6)
        wide = F.gelu(F.linear(normed, block.mlp[0].weight, block.mlp[0].bias))
        query = query + F.linear(wide, block.mlp[2].weight, block.mlp[2].bias)
    return F.layer_norm(query, (D,), pool.norm.weight, pool.norm.bias, eps=1e-6)[0]


def test_class_attention_is_caits() -> None:
    pool, patches = scrambled(ClassAttentionPool(D, HEADS)), features(B, N, D)
    for b in range(B):
        torch.testing.assert_close(pool(patches[b]), class_attention_by_torch(pool, patches[b]), rtol=1e-4, atol=1e-5)


def test_average_pool_is_the_normed_mean() -> None:
    pool, patches = AveragePool(D), features(B, N, D)
    torch.testing.assert_close(pool(patches), F.layer_norm(patches.mean(1), (D,), eps=1e-6))


@pytest.mark.parametrize("positives_of", [clip_positives, lambda x: top_positives(x, 4, neighbour_table(3, 4))])
def test_pooling_runs_in_bfloat16(positives_of) -> None:
    patches = features(B, N, D)
    positives = positives_of(patches)
    for pool in (ClassAttentionPool(D, HEADS), AveragePool(D)):
        with torch.autocast("cpu", torch.bfloat16):
            coarse = pool.pool_positives(patches.bfloat16(), positives)
        torch.testing.assert_close(coarse.float(), pool.pool_positives(patches, positives), rtol=0.1, atol=0.05)
