"""`InfoNCELoss` on plain tensors, with a memory bank and within the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from selfpatch.losses import InfoNCELoss, MemoryBank

B, E, SIZE, TEMP = 4, 5, 8, 0.3


def queries_and_keys() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.manual_seed(0)
    return torch.randn(B, E, generator=generator).requires_grad_(), torch.randn(B, E, generator=generator)


def test_with_a_bank_the_negatives_are_its_keys_and_it_takes_in_the_new_ones() -> None:
    queries, keys = queries_and_keys()
    criterion, bank = InfoNCELoss(TEMP), MemoryBank(SIZE, E)
    before = bank.keys.clone()
    loss = criterion(queries, keys, bank)
    candidates = [torch.cat([F.normalize(k, dim=0)[None], before]) for k in keys]
    logits = torch.stack([F.normalize(q, dim=0) @ c.T / TEMP for q, c in zip(queries, candidates, strict=True)])
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(B, dtype=torch.long)))
    assert torch.equal(bank.keys, before), "not before the step is over"
    bank.update()
    torch.testing.assert_close(bank.keys, torch.cat([F.normalize(keys, dim=1), before[B:]]))


def test_without_a_bank_the_negatives_are_the_other_keys_of_the_batch() -> None:
    queries, keys = queries_and_keys()
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / TEMP
    torch.testing.assert_close(InfoNCELoss(TEMP)(queries, keys), F.cross_entropy(logits, torch.arange(B)))


def test_keys_take_no_gradient() -> None:
    queries, keys = queries_and_keys()
    keys.requires_grad_()
    for bank in (None, MemoryBank(SIZE, E)):
        InfoNCELoss(TEMP)(queries, keys, bank).backward()
    assert queries.grad is not None
    assert keys.grad is None
