"""Position debiasing on features with planted directions of positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.ops.debias import (
    position_basis,
    position_loss,
    predict_positions,
    remove_position_layers,
    remove_positions,
)

D = 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def positions(h: int, w: int) -> Tensor:
    """Rows and columns [h, w, 2] from 0 to 1, by a loop."""
    return torch.tensor([[[row / (h - 1), column / (w - 1)] for column in range(w)] for row in range(h)])


def test_directions_of_a_blank_image_are_removed_and_others_stay() -> None:
    planted = torch.linalg.qr(draw(D, 4)).Q  # two directions of positions, a constant one, and one of content
    blank = 10 * planted[:, 2] + (positions(5, 6) - 0.5) @ planted[:, :2].T
    basis = position_basis(10 * blank, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2))
    content = planted[:, 3].expand(5, 6, D)
    debiased = remove_positions(3 * (content + positions(5, 6) @ planted[:, :2].T), basis)
    assert F.cosine_similarity(debiased, content, dim=-1).min() > 0.99
    torch.testing.assert_close(debiased.norm(dim=-1), torch.ones(5, 6))


def test_removal_is_that_of_the_loop() -> None:
    x, basis = draw(3, 4, D), position_basis(draw(4, 4, D, seed=1), 3)
    expected = torch.empty_like(x)
    for b in range(3):
        for i in range(4):
            y = x[b, i] / x[b, i].norm()
            for direction in basis.T:
                y = y - (y @ direction) * direction
            expected[b, i] = y / y.norm()
    torch.testing.assert_close(remove_positions(x, basis), expected)


@pytest.mark.parametrize("rank", [0, 12, 500])
def test_ranks_that_leave_nothing_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank is {rank}, but patches \[20, 12\] of a blank image have 1 to 11"):
        position_basis(draw(4, 5, D), rank)


def test_layers_are_removed_one_after_the_other() -> None:
    x, layers = draw(2, 5, D), draw(3, 2, D, seed=1)
    expected = x
    for a, b in layers:  # Gram-Schmidt
        a = a / a.norm()
        b = b - (b @ a) * a
        b = b / b.norm()
        expected = expected - (expected @ a)[..., None] * a - (expected @ b)[..., None] * b
    debiased = remove_position_layers(x, layers)
    torch.testing.assert_close(debiased, expected, rtol=1e-4, atol=1e-5)
    assert (debiased @ layers[-1].T).abs().max() < 1e-5


def test_a_layer_of_one_direction_removes_just_that() -> None:
    x, row = draw(5, D), draw(D, seed=1)
    debiased = remove_position_layers(x, torch.stack([row, -2 * row])[None])
    torch.testing.assert_close(debiased, x - (x @ row / row.square().sum())[:, None] * row)


def test_the_loss_is_that_of_the_loop_and_trains_the_layer_alone() -> None:
    x, layer = draw(2, 3, 4, D).requires_grad_(), draw(2, D, seed=1).requires_grad_()
    wanted = positions(3, 4)
    errors = [
        (torch.sigmoid(layer[axis] @ x[b, row, column]) - wanted[row, column, axis]) ** 2
        for b in range(2)
        for row in range(3)
        for column in range(4)
        for axis in range(2)
    ]
    loss = position_loss(x, layer)
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    loss.backward()
    assert x.grad is None
    assert layer.grad is not None


def test_a_fitted_layer_finds_planted_positions_and_its_removal_hides_them() -> None:
    directions = torch.linalg.qr(draw(D, 2)).Q
    x = 4 * (positions(4, 4) - 0.5) @ directions.T + 0.1 * draw(8, 4, 4, D, seed=1)
    layer = torch.zeros(2, D, requires_grad=True)
    optimizer = torch.optim.SGD([layer], lr=5)
    for _ in range(100):
        optimizer.zero_grad()
        position_loss(x, layer).backward()
        optimizer.step()
    assert (predict_positions(x, layer) - positions(4, 4)).abs().mean() < 0.1
    left = remove_position_layers(x, layer.detach()[None])
    assert (left @ directions).std() < 0.2 * (x @ directions).std()


def test_a_grid_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="a grid of 1 x 4 patches has no positions to tell"):
        position_loss(draw(2, 1, 4, D), draw(2, D))
