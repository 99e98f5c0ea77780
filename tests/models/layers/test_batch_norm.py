"""Batch normalisation over the global batch, on one process; on several: tests/end_to_end/test_distributed.py."""

from __future__ import annotations

import torch
from torch import nn

from selfpatch.models.layers.batch_norm import BatchNorm


def test_batch_norm_on_one_process_is_torchs() -> None:
    ours = BatchNorm(8)
    theirs = nn.BatchNorm1d(8)
    x = torch.randn(4, 5, 8) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))
    assert not dict(ours.named_buffers()), "there is nothing that a step which fails could spoil"
