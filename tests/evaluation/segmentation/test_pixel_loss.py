"""The loss of pixels takes one image at a time, and equals that of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.pixel_loss import pixel_loss, pixel_loss_reference
from tests.helpers.largest_tensor import LargestTensor


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits [4, 8, 4, 5], channels last, and labels of 14 x 18 pixels, of which one image and some rows are void."""
    torch.manual_seed(0)
    labels = torch.randint(0, 8, (4, 14, 18))
    labels[0], labels[1, :3] = IGNORE, IGNORE
    return torch.randn(4, 4, 5, 8).movedim(-1, 1), labels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, {}), (torch.bfloat16, {"rtol": 0.01, "atol": 0.01})])
def test_loss_and_gradient_equal_those_of_the_whole_batch(
    batch: tuple[Tensor, Tensor], dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    logits, labels = batch[0].to(dtype).requires_grad_(), batch[1]
    losses = [loss(logits, labels, (16, 20)) for loss in (pixel_loss, pixel_loss_reference)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*[torch.autograd.grad(3 * loss, logits) for loss in losses], **tolerance)
    with torch.no_grad():
        assert torch.equal(pixel_loss(logits, labels, (16, 20)), losses[0])


def test_enlarged_logits_exist_of_one_image_and_not_until_the_backward_pass(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch[0].requires_grad_(), batch[1]
    with LargestTensor() as largest:
        loss = pixel_loss(logits, labels, (16, 20))
    assert loss.grad_fn is not None
    kept = loss.grad_fn.saved_tensors  # type: ignore[attr-defined]
    assert largest.elements == 8 * 16 * 20
    assert [one.shape for one in kept] == [logits.shape]
