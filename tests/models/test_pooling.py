"""The pools that aggregate patches; their values are tested with the operations they are made of."""

from __future__ import annotations

from selfpatch.models.param_groups import param_groups
from selfpatch.models.pooling import ClassAttentionPool


def test_the_query_of_the_pool_is_decayed_as_released() -> None:
    pool = ClassAttentionPool(8, 2)
    decayed, kept = param_groups(pool)
    assert any(p is pool.query for p in decayed["params"])
    assert all(p.ndim == 1 for p in kept["params"])
