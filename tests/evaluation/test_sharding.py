"""Shares of items and batches, and what comes of them when they are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from selfpatch.core import distributed
from selfpatch.core.distributed import gather, gather_rows
from selfpatch.evaluation import sharding
from selfpatch.evaluation.sharding import data_parallel, share_of, share_of_batch
from tests.helpers.workers import WorkerPool


@pytest.mark.parametrize("num_items", [0, 1, 2, 5, 12, 13])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_consecutive_and_nearly_equal(
    num_items: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "world_size", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(sharding, "rank", lambda number=number: number)
        shares.append(share_of(num_items))
    assert [i for share in shares for i in share] == list(range(num_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(shares[0]) == max(map(len, shares))


def test_parts_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of_batch(7) == slice(0, 7)
    monkeypatch.setattr(sharding, "world_size", lambda: 4)
    monkeypatch.setattr(sharding, "rank", lambda: 2)
    assert share_of_batch(12) == slice(6, 9)
    with pytest.raises(ValueError, match=r"a batch of 10 images cannot be divided among 4 processes; use .* such as 8"):
        share_of_batch(10)
    with pytest.raises(ValueError, match=r"a batch of 3 images cannot be divided among 4 processes; use .* such as 4"):
        share_of_batch(3)


def join(rank: int) -> dict[str, Any]:
    rows = torch.arange(10).view(5, 2)
    share = share_of(5)
    mine = rows[share.start : share.stop]
    return {
        "values": gather([f"value {i}" for i in share]),
        "integers": gather_rows([mine[:1], mine[1:]]),
        "bools": gather_rows([mine > 4]),
        "halves": gather_rows([mine.half()[..., None]]),
        "of the second": gather_rows([mine.float()] if rank == 1 else []),
        "none of the first": gather_rows([mine[:0] if rank == 0 else mine]),
        "vector": gather_rows([mine[:, 0]]),
    }


def test_shares_are_joined_in_order(pool: WorkerPool) -> None:
    rows = torch.arange(10).view(5, 2)
    for joined in pool.run(join):
        assert joined["values"] == [f"value {i}" for i in range(5)]
        for name, expected in {
            "integers": rows,
            "bools": rows > 4,
            "halves": rows.half()[..., None],
            "of the second": rows[3:].float(),
            "none of the first": rows[3:],
            "vector": rows[:, 0],
        }.items():
            assert joined[name].dtype == expected.dtype
            assert torch.equal(joined[name], expected), name


def test_one_process_has_everything() -> None:
    rows = torch.rand(3, 2)
    assert gather([1, 2]) == [1, 2]
    assert torch.equal(gather_rows([rows[:1], rows[1:]]), rows)
    assert distributed.all_reduce_max(3, 4) == (3, 4)
    head = nn.Linear(2, 1)
    assert data_parallel(head, head.forward) == head.forward


class Decoder(nn.Module):
    """A network with each of the layers that see the global batch, and one layer that no loss reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.drop_path, self.unused = nn.Dropout2d(0.3), DropPath(0.4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.drop_path(self.convolution(x))))


def descend(rank: int, parts: int) -> dict[str, Tensor]:
    decoder = Decoder().train()
    images, target = (torch.randn(8, c, 5, 6, generator=torch.Generator().manual_seed(c)) for c in (3, 4))
    part = slice(8 // parts * rank, 8 // parts * (rank + 1))
    loss = data_parallel(decoder, lambda batch: (decoder(batch[0]) - batch[1]).square().mean())
    torch.manual_seed(5)
    for _ in range(2):
        loss((images[part], target[part])).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    assert not any("unused" in name for name in gradients)
    return {**decoder.state_dict(), **gradients}


def test_gradients_and_statistics_are_those_of_the_global_batch(pool: WorkerPool) -> None:
    expected = descend(0, 1)
    for result in pool.run(descend, 2):
        assert result.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


def test_layers_are_as_before_in_evaluation_mode() -> None:
    images = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    decoder = Decoder().eval()
    sharding.use_global_batch(decoder)
    assert torch.equal(decoder(images), Decoder().eval()(images))
    assert decoder.state_dict().keys() == Decoder().state_dict().keys()
