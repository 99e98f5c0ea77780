"""`DenseContrastLoss` on plain tensors; its values are tested with DenseCL, the correspondence here."""

from __future__ import annotations

import torch

from selfpatch.losses import DenseContrastLoss, MemoryBank
from selfpatch.losses.info_nce import corresponding_positions


def test_correspondence_is_by_direction_not_by_length() -> None:
    keys = torch.eye(4)[None] * torch.tensor([1.0, 100.0, 1.0, 1.0])[:, None]
    queries = torch.tensor([[[0.0, 0.1, 5.0, 0.0], [3.0, 1.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.1]]])
    assert corresponding_positions(queries, keys).tolist() == [[2, 0, 1]]


def test_correspondence_is_found_in_float32_under_autocast() -> None:
    queries = torch.tensor([[[1.0, 0.0]]])
    keys = torch.tensor([[[1.0, 0.03], [1.0, 0.02]]])  # cosines that bf16 cannot tell apart
    with torch.autocast("cpu", torch.bfloat16):
        assert corresponding_positions(queries, keys).tolist() == [[1]]


def test_the_bank_takes_in_one_mean_key_per_image() -> None:
    torch.manual_seed(0)
    features, projections = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 5)
    bank = MemoryBank(4, 5)
    queries, keys = projections[0].requires_grad_(), projections[1].requires_grad_()
    criterion = DenseContrastLoss(temp=0.2)
    criterion(queries, keys, bank, student_features=features[0], teacher_features=features[1]).backward()
    bank.update()
    torch.testing.assert_close(bank.keys[:3], torch.nn.functional.normalize(keys.detach().mean(1), dim=-1))
