"""`PaKALoss` on plain tensors, against kernels of all pairs of patches."""

from __future__ import annotations

import pytest
import torch

from selfpatch.losses import PaKALoss


def patches(seed: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(3, 8, dim, generator=torch.manual_seed(seed))


def cka(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Linear CKA of patches [n, D] with kernels [n, n] whose rows and columns are centred."""
    centring = torch.eye(len(a)) - 1 / len(a)
    kernels = [centring @ x @ x.T @ centring for x in (a, b)]
    return (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())


@pytest.mark.parametrize("dims", [(6, 4), (12, 10)], ids=["many patches", "few patches"])
def test_the_loss_is_that_of_the_kernels_of_each_image(dims: tuple[int, int]) -> None:
    student, teacher = patches(0, dims[0]).requires_grad_(), patches(1, dims[1])
    expected = 1 - torch.stack([cka(a, b) for a, b in zip(student, teacher, strict=True)]).mean()
    loss = PaKALoss()(student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


def test_patches_that_are_left_out_count_nowhere() -> None:
    student, teacher, ignored = patches(0), patches(1), torch.zeros(3, 8, dtype=torch.bool)
    ignored[0, 5:], ignored[1, 1:] = True, True  # image 1 has one patch left, which has no kernel
    expected = 1 - (cka(student[0, :5], teacher[0, :5]) + cka(student[2], teacher[2])) / 2
    torch.testing.assert_close(PaKALoss()(student, teacher, ignored), expected)
    assert PaKALoss()(student, teacher, torch.ones_like(ignored)) == 0


def test_rotation_shift_and_scale_cost_nothing() -> None:
    student = patches(0)
    rotation = torch.linalg.qr(patches(2)[0, :6]).Q
    assert PaKALoss()(student, 5 * student @ rotation + 1) < 1e-6
